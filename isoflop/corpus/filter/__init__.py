"""Rules and models that drop, cut or mask documents."""
