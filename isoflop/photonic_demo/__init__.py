"""The photonic tensor core on one page: experiments, their pictures, and the words between them."""
