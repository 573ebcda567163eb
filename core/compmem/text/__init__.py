"""Text as UTF-8, words, names and sentences."""
