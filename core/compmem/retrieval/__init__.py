"""From a question and its working memory to candidate blocks."""
