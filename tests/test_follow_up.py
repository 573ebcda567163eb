"""Follow-up questions that are made standalone without a model."""

import pytest

from compmem.serving import request_bodies
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
        ([HISTORY[1]], "Where was she born?", "Where was she born? (Ann Lee)"),
        (HISTORY, "And Acme?", "Who founded Acme?"),
        ([turn("user", "Who were the founders of Bolt?"), turn("assistant", "Ann Lee."), turn("user", "And when?"),
          turn("assistant", "In 2012.")], "And Acme?", "Who were the founders of Acme?"),
        (HISTORY, "What about Acme?", "Who founded Acme?"),
        ([turn("user", "What did Acme earn in April 2022?")], "And in May?", "What did Acme earn in May 2022?"),
        ([turn("user", "What did Acme earn in April 2022?")], "and in 2023?", "What did Acme earn in April 2023?"),
        ([turn("user", "What did Acme earn?")], "And in May?", "What did Acme earn? And in May?"),
        ([turn("user", "When does Acme open on Monday?")], "And on Friday?", "When does Acme open on Friday?"),
        ([turn("user", "When does Acme open on Monday?")], "And Bolt?", "When does Acme open on Monday? And Bolt?"),
        ([turn("user", "Where does bus 11 leave?")], "And when does bus 12 leave?",
         "Where does bus 11 leave? And when does bus 12 leave?"),
        ([turn("user", "What was the revenue in 2023?")], "And why 1200?",
         "What was the revenue in 2023? And why 1200?"),
        ([turn("user", "Is Monday a holiday in Spain?")], "And Easter?", "Is Monday a holiday in Spain? And Easter?"),
        ([turn("user", "What was the revenue in 2022?")], "And profit in 2023?",
         "What was the revenue in 2022? And profit in 2023?"),
        ([turn("user", "What was the revenue in 2022?")], "Is 2023 audited?",
         "What was the revenue in 2022? Is 2023 audited?"),
        ([turn("user", "How many guests came on 3 May?")], "And on 4 June?",
         "How many guests came on 3 May? And on 4 June?"),
        ([turn("user", "What is new in Windows 10?")], "And Windows 11?",
         "What is new in Windows 10? And Windows 11?"),
        ([turn("user", "May I park there in May?")], "And in June?", "May I park there in June?"),
        ([turn("user", "How many seats has D1.04?")], "And D2.11?", "How many seats has D2.11?"),
        ([turn("user", "What do 3 bolts of 30 mm cost?")], "and 5?", "What do 5 bolts of 30 mm cost?"),
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
        ([turn("user", "Hello"), turn("user", "thanks!"), turn("user", "What do giraffes eat?")], "and in Leeds?",
         "What do giraffes eat? and in Leeds?"),
    ],
)  # fmt: skip
def test_the_names_that_a_question_refers_to_stand_behind_it(history, question, expected):
    assert standalone_question(history, question) == expected


LEAVE = [turn("user", "How many days of leave do I get?"), turn("assistant", "28 days of paid leave a year.")]
DISHWASHER = [turn("user", "What does E2 mean on the DW60?"), turn("assistant", "E2: Water does not drain.")]
INCIDENT = [turn("user", "Who fixed INC-102?"), turn("assistant", "INC-102: Fixed by: Piotr Zielinski")]
PARKING = [turn("user", "Is there parking at the Vienna office?"), turn("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("history", "question", "expected"),
    [
        (LEAVE, "what about part-time employees",
         "How many days of leave do I get? what about part-time employees"),
        (LEAVE, "And how long for interns?", "How many days of leave do I get? And how long for interns?"),
        ([*LEAVE, turn("user", "and for the part-time employees?"), turn("assistant", "14 days.")], "and for interns?",
         "How many days of leave do I get? and for interns?"),
        (DISHWASHER, "and on the DW45?", "What does E2 mean on the DW45?"),
        (DISHWASHER, "and E4?", "What does E4 mean on the DW60?"),
        (INCIDENT, "what about INC-103?", "Who fixed INC-103?"),
        (PARKING, "And at the Berlin office?", "Is there parking at the Berlin office?"),
        (PARKING, "How about a garage in Berlin?",
         "Is there parking at the Vienna office? How about a garage in Berlin?"),
    ],
)  # fmt: skip
def test_a_message_that_begins_with_and_or_what_about_repeats_the_last_question(history, question, expected):
    assert standalone_question(history, question) == expected


@pytest.mark.parametrize(
    "question",
    [
        "And who insures the Harbour Building?",
        "And is Acme in the union?",
        "And Bolt was founded in May.",
        "What was the reason for leaving?",
        "And how many days of holiday are left for interns?",
    ],
)
def test_a_whole_question_or_a_statement_after_and_is_left_as_it_is(question):
    assert standalone_question(HISTORY, question) == question


@pytest.mark.parametrize(
    ("asked", "answer", "question", "expected"),
    [
        ("how do i create a widget", "POST /widgets", "and delete one?", "how do i create a widget and delete one?"),
        ("who fixed it", "Fixed by: Piotr Noor", "what else did he fix?", "what else did he fix? (Piotr Noor)"),
        ("who runs it", "Incidents: **Owner:** Ann Lee", "where is she?", "where is she? (Ann Lee)"),
        ("who runs it", "Owners of it are many. Mostly it is Ann Lee.", "where is she?", "where is she? (Ann Lee)"),
        ("which plan is it", "Plan: Silver.", "when does it end?", "when does it end? (Silver)"),
        ("what broke", "INC-102 in May. The owner is Noor.", "who fixed it?", "who fixed it? (INC-102; Noor)"),
        ("who pays", "Quill Dairy: The plan is new.", "when does it end?", "when does it end? (Quill Dairy)"),
    ],
)  # fmt: skip
def test_the_first_word_of_a_sentence_or_a_label_in_an_answer_is_no_name(asked, answer, question, expected):
    assert standalone_question([turn("user", asked), turn("assistant", answer)], question) == expected


def chat(*messages):
    return request_bodies.parse_chat({"model": "m", "messages": list(messages)}, "m", Limits()).question


def test_a_chat_completion_uses_the_turns_before_the_question():
    asked = {"role": "user", "content": "Where was she born?"}
    assert chat(*HISTORY, asked) == "Where was she born? (Ann Lee)"
    assert chat(asked) == "Where was she born?"
    system = {"role": "system", "content": "Call every user Eve Noon."}
    image = {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "What is this?"}]}
    assert chat(system, image, *HISTORY, asked, {"role": "assistant", "content": None}) == chat(*HISTORY, asked)
    assert chat({"role": "assistant", "content": None, "tool_calls": []}, asked) == "Where was she born?"
    many = [{"role": "assistant", "content": f"Person {n} Noon."} for n in range(request_bodies.MAX_HISTORY_MESSAGES)]
    assert chat(*HISTORY, *many, asked) == chat(*many, asked)
