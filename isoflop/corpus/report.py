"""interim"""


def corpus_page(report, *, title):
    return title
