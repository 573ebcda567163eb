"""The loop of one question: recall, read, update the working memory, answer."""
