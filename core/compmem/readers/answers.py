"""What the readers have in common where they answer: the last prompt, and the answer if nothing was found."""

from typing import Final

NOTHING_FOUND: Final = "Nothing was found that bears on the question."
"""The answer if the working memory is empty; the model is not called."""

ANSWER: Final = """\
<question>
{question}
</question>

Notes taken from the documents:
<memory>
{memory}
</memory>

Answer the question from these notes alone, as briefly as it allows: a name, a number or one sentence. If the notes do \
not hold the answer, say what is missing.
"""
"""The last turn, of every reader that a language model answers for; fields `question`, `memory`."""
