"""Answers judged by another model: questions and forms, an endpoint that may fail, and one run of both."""
