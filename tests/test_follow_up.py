"""Follow-up questions that are made standalone without a model."""

import pytest

from compmem.serving import bodies
from compmem.serving.limits import Limits
from compmem.text.follow_up import standalone_question


def turn(role, text):
    return {"role": role, "content": text}


HISTORY = [turn("user", "Who founded Bolt?"), turn("assistant", "Bolt was founded by Ann Lee.")]


@pytest.mark.parametrize(
    ("history", "question", "expected"),
    [
        (HISTORY, "Where was she born?", "Where was she born? (Ann Lee)"),
        (HISTORY, "And when?", "Who founded Bolt? And when?"),
        (HISTORY, "When was it founded?", "When was it founded? (Bolt; Ann Lee)"),
        (HISTORY, "Who insures the Harbour Building?", "Who insures the Harbour Building?"),
        ([], "Where was she born?", "Where was she born?"),
        ([HISTORY[1]], "Where was she born?", "Where was she born? (Bolt; Ann Lee)"),
        (HISTORY, "And Acme?", "Who founded Acme?"),
        ([turn("user", "Who were the founders of Bolt?"), turn("assistant", "Ann Lee."), turn("user", "And when?"),
          turn("assistant", "In 2012.")], "And Acme?", "Who were the founders of Acme?"),
        (HISTORY, "What about Acme?", "Who founded Acme?"),
        (HISTORY, "Thank you.", "Thank you."),
        ([turn("user", "Which plan does Quill Dairy have?"), turn("assistant", "Silver.")], "When does it renew?",
         "When does it renew? (Quill Dairy; Silver)"),
        ([*HISTORY, turn("user", "When was it sold?"), turn("assistant", "In 2020.")], "and why?",
         "When was it sold? and why? (Bolt)"),
        ([turn("user", "What does Acme rent?"), turn("assistant", "Acme rents the Mill.")], "Who insures it?",
         "Who insures it? (Acme; Mill)"),
        ([turn("user", "who pays"), turn("assistant", "nobody")], "and why?", "who pays and why?"),
        ([turn("user", "Who is Ada?"), turn("assistant", "Ada.")], "Where is she?", "Where is she? (Ada)"),
        (HISTORY, "?", "?"),
        (HISTORY, "Is there parking at the Berlin office?", "Is there parking at the Berlin office?"),
        (HISTORY, "Is there parking?", "Is there parking? (Bolt; Ann Lee)"),
        (HISTORY, "What does IT buy for visitors?", "What does IT buy for visitors?"),
        (HISTORY, "WHERE WAS SHE BORN?", "WHERE WAS SHE BORN? (Ann Lee)"),
        (HISTORY, "Ok?", "Who founded Bolt? Ok?"),
    ],
)  # fmt: skip
def test_the_names_that_a_question_refers_to_stand_behind_it(history, question, expected):
    assert standalone_question(history, question) == expected


def chat(*messages):
    return bodies.parse_chat({"model": "m", "messages": list(messages)}, "m", Limits()).question


def test_a_chat_completion_uses_the_turns_before_the_question():
    asked = {"role": "user", "content": "Where was she born?"}
    assert chat(*HISTORY, asked) == "Where was she born? (Ann Lee)"
    assert chat(asked) == "Where was she born?"
    system = {"role": "system", "content": "Call every user Eve Noon."}
    image = {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "What is this?"}]}
    assert chat(system, image, *HISTORY, asked, {"role": "assistant", "content": None}) == chat(*HISTORY, asked)
    assert chat({"role": "assistant", "content": None, "tool_calls": []}, asked) == "Where was she born?"
    many = [{"role": "assistant", "content": f"Person {n} Noon."} for n in range(bodies.MAX_HISTORY_MESSAGES)]
    assert chat(*HISTORY, *many, asked) == chat(*many, asked)
