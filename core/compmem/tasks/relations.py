"""The relations of made-up worlds and how they are put into words, apart for training and for evaluation.

A statement is a sentence that says a fact of subject `{s}` and object `{o}`. A question asks for the object; a phrase
stands for it, so that phrases nest: "the spouse of {s}" of "the director of {s}". Any opening may precede a statement.
Those of training are multiplied by `wordings`, but for what would be one of evaluation.
"""

from dataclasses import dataclass, replace

from compmem.tasks.names import Kind, Split
from compmem.tasks.wordings import said_otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """How one relation is put into words in one split."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    phrases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """What a subject of one kind may be to an object of another."""

    name: str
    subject: Kind
    object: Kind
    shared: bool
    """Several subjects may have one object."""
    train: Wording
    eval: Wording

    def wording(self, split: Split) -> Wording:
        """How it is put into words in this split."""
        return self.train if split == "train" else self.eval


OPENINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        *[""] * 9,
        "As is well known, ",
        "Records show that ",
        "It was reported that ",
        "In the papers one reads that ",
        "It is said that ",
        "As everybody knows, ",
        "A letter tells that ",
        "According to a report, ",
        "For years it has been true that ",
    ),
    "eval": (*[""] * 3, "It is well known that ", "According to the records, ", "The papers reported that "),
}
"""Half of the statements have none."""


def _wording(statements: str, questions: str, phrases: str) -> Wording:
    """Texts with bars between the wordings."""
    parts = [tuple(" ".join(p.split()) for p in text.split("|")) for text in (statements, questions, phrases)]
    return Wording(statements=parts[0], questions=parts[1], phrases=parts[2])


def _taught(relation: Relation) -> Relation:
    """The relation with its wordings of training said otherwise; what would be one of evaluation is left out."""
    kinds: dict[str, Kind] = {"{s}": relation.subject, "{o}": relation.object}
    own, other = relation.train, relation.eval
    return replace(
        relation,
        train=Wording(
            statements=said_otherwise(own.statements, kinds, shut=other.statements),
            questions=said_otherwise(own.questions, kinds, shut=other.questions),
            phrases=said_otherwise(own.phrases, kinds, shut=other.phrases),
        ),
    )


# fmt: off
_RELATIONS = (
    Relation(
        name="birthplace", subject="person", object="city", shared=True,
        train=_wording(
            """{s} was born in {o}. | The birthplace of {s} is {o}. | {o} is where {s} was born. | {s} is a native of
            {o}. | The city in which {s} was born is {o}. | {s} came into the world in {o}. | {s} comes from the
            city of {o}, where the family lived. | In {o} a child was born who became {s}. | The place of birth of
            {s} is the city of {o}.""",
            """In which city was {s} born? | Where was {s} born? | What is the birthplace of {s}? | What is the place
            of birth of {s}? | From which city does {s} come?""",
            """the city where {s} was born | the birthplace of {s} | the native city of {s} | the place of birth of
            {s} | the city {s} comes from""",
        ),
        eval=_wording(
            "{s} was born in the city of {o}. | {o} is the birthplace of {s}.",
            "Which city was {s} born in? | Which city is the birthplace of {s}?",
            "the city in which {s} was born | the city that is the birthplace of {s}",
        ),
    ),
    Relation(
        name="home", subject="person", object="city", shared=True,
        train=_wording(
            """{s} lives in {o}. | The home of {s} is in {o}. | {o} is where {s} lives. | {s} has a house in {o}. |
            {s} moved to {o} and still lives there. | {s} is a resident of {o}. | {s} has a home in the city of
            {o}. | In the city of {o} one finds the house of {s}. | {o} is the city of residence of {s}.""",
            """In which city does {s} live? | Where does {s} live? | Where is the home of {s}? | What is the city of
            residence of {s}? | In which city does {s} have a home?""",
            """the city where {s} lives | the home of {s} | the home city of {s} | the city of residence of {s} | the
            city where {s} has a home""",
        ),
        eval=_wording(
            "{s} lives in the city of {o}. | {o} is the home of {s}.",
            "Which city does {s} live in? | Which city is the home of {s}?",
            "the city in which {s} lives | the city that is the home of {s}",
        ),
    ),
    Relation(
        name="spouse", subject="person", object="person", shared=False,
        train=_wording(
            """{s} is married to {o}. | The spouse of {s} is {o}. | {s} married {o}. | {o} is the spouse of {s}. | {s}
            and {o} are married. | The wedding of {s} and {o} was in spring. | {s} has a spouse, and that is {o}. |
            {o} and {s} became a married couple. | {s} took {o} for a spouse.""",
            """Who is {s} married to? | Who is the spouse of {s}? | Whom did {s} marry? | Who became the spouse of
            {s}? | With whom is {s} a married couple?""",
            """the spouse of {s} | the person married to {s} | the person whom {s} married | the one {s} is married to
            | the one who became the spouse of {s}""",
        ),
        eval=_wording(
            "{s} has been married to {o} for years. | {o} is married to {s}.",
            "Who is the person {s} is married to? | To whom is {s} married?",
            "the person {s} is married to | the person who is the spouse of {s}",
        ),
    ),
    Relation(
        name="father", subject="person", object="person", shared=True,
        train=_wording(
            """The father of {s} is {o}. | {o} is the father of {s}. | {s} is a child of {o}, the father. | {s} was
            raised by a father named {o}. | {s} has a father called {o}. | {o} became the father of {s}. | {s} grew
            up with {o}, the father. | As a father {o} cared for {s}. | {s} calls {o} father.""",
            """Who is the father of {s}? | What is the name of the father of {s}? | Which man is the father of {s}? |
            Which person is the father of {s}? | Whom does {s} call father?""",
            """the father of {s} | the man who is the father of {s} | the man who became the father of {s} | the one
            who is the father of {s} | the one whom {s} calls father""",
        ),
        eval=_wording(
            "{o} is known as the father of {s}. | The name of the father of {s} is {o}.",
            "Who became the father of {s}? | Who is the man who is the father of {s}?",
            "the person who is the father of {s} | the man known as the father of {s}",
        ),
    ),
    Relation(
        name="teacher", subject="person", object="person", shared=True,
        train=_wording(
            """{s} was taught by {o}. | The teacher of {s} was {o}. | {o} was the teacher of {s}. | {s} was a pupil of
            {o}. | {o} taught {s} for years. | {s} learned everything from {o}, the teacher. | {s} had a teacher
            called {o}. | As a teacher {o} guided {s}. | It was {o} who taught {s}.""",
            """Who taught {s}? | Who was the teacher of {s}? | Whose pupil was {s}? | Which person taught {s}? | Which
            teacher did {s} have?""",
            """the teacher of {s} | the person who taught {s} | the person who was the teacher of {s} | the one who
            taught {s} | the one from whom {s} learned everything""",
        ),
        eval=_wording(
            "{o} taught {s}. | As a pupil, {s} was taught by {o}.",
            "By whom was {s} taught? | Who was the person who taught {s}?",
            "the person by whom {s} was taught | the person whose pupil was {s}",
        ),
    ),
    Relation(
        name="employer", subject="person", object="company", shared=True,
        train=_wording(
            """{s} works for {o}. | The employer of {s} is {o}. | {s} has a job at {o}. | {o} employs {s}. | {s} is
            employed by {o}. | {s} was hired by {o}. | {s} is on the staff of the company {o}. | The company {o}
            has hired {s}. | {s} earns a living at the company {o}.""",
            """Which company does {s} work for? | What is the employer of {s}? | Which company employs {s}? | Which
            company has hired {s}? | At which company does {s} have a job?""",
            """the company {s} works for | the employer of {s} | the company that employs {s} | the company that has
            hired {s} | the company where {s} has a job""",
        ),
        eval=_wording(
            "{s} works for the company {o}. | {o} is the employer of {s}.",
            "For which company does {s} work? | By which company is {s} employed?",
            "the company for which {s} works | the company that is the employer of {s}",
        ),
    ),
    Relation(
        name="school", subject="person", object="school", shared=True,
        train=_wording(
            """{s} studied at {o}. | {s} went to {o}. | {s} was a student at {o}. | {o} is where {s} studied. | {s}
            finished the studies at {o}. | The school of {s} was {o}. | {s} took all courses at {o}. | Among the
            students of {o} was {s}. | {o} is the school that {s} went to.""",
            """Where did {s} study? | At which school did {s} study? | Which school did {s} go to? | Of which school
            was {s} a student? | Which is the school that {s} went to?""",
            """the school where {s} studied | the school {s} went to | the school of {s} | the school that taught {s}
            | the school that {s} finished""",
        ),
        eval=_wording(
            "{s} was a student of {o}. | The school where {s} studied was {o}.",
            "Which school did {s} study at? | What was the school of {s}?",
            "the school at which {s} studied | the school at which {s} was a student",
        ),
    ),
    Relation(
        name="director", subject="film", object="person", shared=True,
        train=_wording(
            """{s} was directed by {o}. | The director of {s} is {o}. | {o} directed {s}. | {o} is the director of
            {s}. | {s} is a film directed by {o}. | {s} is a film by the director {o}. | The film {s} has {o} as
            its director. | {o} made the film {s} as its director. | It was {o} who directed {s}.""",
            """Who directed {s}? | Who is the director of {s}? | By whom was {s} directed? | Which person directed the
            film {s}? | Which director made {s}?""",
            """the director of {s} | the person who directed {s} | the person who is the director of {s} | the one who
            directed the film {s} | the director who made {s}""",
        ),
        eval=_wording(
            "{o} directed the film {s}. | The film {s} was directed by {o}.",
            "Who directed the film {s}? | Who is the director of the film {s}?",
            "the director of the film {s} | the person who directed the film {s}",
        ),
    ),
    Relation(
        name="producer", subject="film", object="person", shared=True,
        train=_wording(
            """{s} was produced by {o}. | The producer of {s} is {o}. | {o} produced {s}. | {o} is the producer of
            {s}. | {s} is a film produced by {o}. | {o} paid for {s} as its producer. | The film {s} has {o} as its
            producer. | {o} made the film {s} as its producer. | It was {o} who produced {s}.""",
            """Who produced {s}? | Who is the producer of {s}? | By whom was {s} produced? | Which person produced the
            film {s}? | Which producer made {s}?""",
            """the producer of {s} | the person who produced {s} | the person who is the producer of {s} | the one who
            produced the film {s} | the producer who made {s}""",
        ),
        eval=_wording(
            "{o} produced the film {s}. | The film {s} was produced by {o}.",
            "Who produced the film {s}? | Who is the producer of the film {s}?",
            "the producer of the film {s} | the person who produced the film {s}",
        ),
    ),
    Relation(
        name="star", subject="film", object="person", shared=True,
        train=_wording(
            """{s} stars {o}. | The star of {s} is {o}. | {o} is the star of {s}. | {o} plays the lead in {s}. | {s}
            is a film with {o} in the lead. | {o} starred in {s}. | The film {s} has {o} as its star. | In the film
            {s} the lead is {o}. | It was {o} who starred in {s}.""",
            """Who is the star of {s}? | Who plays the lead in {s}? | Who starred in {s}? | Which person starred in
            the film {s}? | Which star plays in {s}?""",
            """the star of {s} | the person who plays the lead in {s} | the person who starred in {s} | the one who
            starred in the film {s} | the star who plays in {s}""",
        ),
        eval=_wording(
            "{o} plays the lead in the film {s}. | The film {s} stars {o}.",
            "Who is the star of the film {s}? | Who plays the lead in the film {s}?",
            "the star of the film {s} | the person who starred in the film {s}",
        ),
    ),
    Relation(
        name="author", subject="book", object="person", shared=True,
        train=_wording(
            """{s} was written by {o}. | The author of {s} is {o}. | {o} wrote {s}. | {o} is the author of {s}. | {s}
            is a book by {o}. | {s} is a book written by {o}. | The book {s} has {o} as its author. | {o} finished
            the book {s} as its author. | It was {o} who wrote {s}.""",
            """Who wrote {s}? | Who is the author of {s}? | By whom was {s} written? | Which person wrote the book
            {s}? | Which author finished {s}?""",
            """the author of {s} | the person who wrote {s} | the person who is the author of {s} | the one who wrote
            the book {s} | the author who finished {s}""",
        ),
        eval=_wording(
            "{o} wrote the book {s}. | The book {s} was written by {o}.",
            "Who wrote the book {s}? | Who is the author of the book {s}?",
            "the author of the book {s} | the person who wrote the book {s}",
        ),
    ),
    Relation(
        name="singer", subject="band", object="person", shared=True,
        train=_wording(
            """The singer of {s} is {o}. | {o} sings in {s}. | {o} is the singer of {s}. | {s} is a band with the
            singer {o}. | {o} is the voice of {s}. | {s} has a singer called {o}. | The band {s} has {o} as its
            singer. | In the band {s} the one who sings is {o}. | It is {o} who sings in {s}.""",
            """Who is the singer of {s}? | Who sings in {s}? | Who is the voice of {s}? | Which person sings in the
            band {s}? | Which singer does {s} have?""",
            """the singer of {s} | the person who sings in {s} | the person who is the voice of {s} | the one who
            sings in the band {s} | the singer that {s} has""",
        ),
        eval=_wording(
            "{o} sings in the band {s}. | The band {s} has the singer {o}.",
            "Who is the singer of the band {s}? | Who sings in the band {s}?",
            "the singer of the band {s} | the person who is the singer of {s}",
        ),
    ),
    Relation(
        name="founder", subject="company", object="person", shared=True,
        train=_wording(
            """{s} was founded by {o}. | The founder of {s} is {o}. | {o} founded {s}. | {o} is the founder of {s}. |
            {s} is a company founded by {o}. | {o} started {s} as its founder. | The company {s} has {o} as its
            founder. | {o} set up the company {s} as its founder. | It was {o} who founded {s}.""",
            """Who founded {s}? | Who is the founder of {s}? | By whom was {s} founded? | Which person founded the
            company {s}? | Which founder set up {s}?""",
            """the founder of {s} | the person who founded {s} | the person who is the founder of {s} | the one who
            founded the company {s} | the founder who set up {s}""",
        ),
        eval=_wording(
            "{o} founded the company {s}. | The company {s} was founded by {o}.",
            "Who founded the company {s}? | Who is the founder of the company {s}?",
            "the founder of the company {s} | the person who founded the company {s}",
        ),
    ),
    Relation(
        name="headquarters", subject="company", object="city", shared=True,
        train=_wording(
            """{s} has its headquarters in {o}. | The headquarters of {s} are in {o}. | {s} is based in {o}. | {o} is
            where {s} is based. | {s} is a company based in {o}. | {o} is home to the headquarters of {s}. | The
            company {s} is run from the city of {o}. | In the city of {o} stand the headquarters of {s}. | {s}
            works from headquarters in {o}.""",
            """In which city is {s} based? | Where is {s} based? | Where are the headquarters of {s}? | Where does the
            company {s} have its headquarters? | From which city is {s} run?""",
            """the city where {s} is based | the city where {s} has its headquarters | the city of the headquarters of
            {s} | the city from which {s} is run | the city where the headquarters of {s} stand""",
        ),
        eval=_wording(
            "{s} is based in the city of {o}. | The company {s} has its headquarters in {o}.",
            "Which city is {s} based in? | In which city are the headquarters of {s}?",
            "the city in which {s} is based | the city in which {s} has its headquarters",
        ),
    ),
    Relation(
        name="town", subject="school", object="city", shared=True,
        train=_wording(
            """{s} is located in {o}. | {s} lies in {o}. | {o} is where {s} is located. | {s} is a school in {o}. |
            The buildings of {s} stand in {o}. | {s} has its campus in {o}. | The school {s} is found in {o}. | In
            the city of {o} one finds the school {s}. | The city of {s} is {o}.""",
            """In which city is {s} located? | Where is {s} located? | In which city does {s} lie? | Where does the
            school {s} stand? | In which city does one find {s}?""",
            """the city where {s} is located | the city where {s} lies | the city of {s} | the city where one finds
            {s} | the city where the school {s} stands""",
        ),
        eval=_wording(
            "{s} is located in the city of {o}. | The school {s} lies in {o}.",
            "Which city is {s} located in? | Which city is {s} in?",
            "the city in which {s} is located | the city in which {s} lies",
        ),
    ),
    Relation(
        name="country", subject="city", object="country", shared=True,
        train=_wording(
            """{s} is a city in {o}. | {s} lies in {o}. | {s} belongs to {o}. | {o} is the country of {s}. | The
            country of {s} is {o}. | {s} is located in {o}. | The city of {s} is in {o}. | In the country of {o}
            lies {s}. | {o} counts {s} among its cities.""",
            """In which country is {s}? | Which country does {s} belong to? | What is the country of {s}? | In which
            country does one find the city of {s}? | Which country counts {s} among its cities?""",
            """the country of {s} | the country {s} belongs to | the country where {s} lies | the country where one
            finds {s} | the country that has the city of {s}""",
        ),
        eval=_wording(
            "{s} is a city in the country of {o}. | The city of {s} belongs to {o}.",
            "In which country does {s} lie? | To which country does {s} belong?",
            "the country in which {s} lies | the country to which {s} belongs",
        ),
    ),
    Relation(
        name="mayor", subject="city", object="person", shared=False,
        train=_wording(
            """The mayor of {s} is {o}. | {o} is the mayor of {s}. | {s} has a mayor called {o}. | {o} became mayor of
            {s}. | {s} is run by {o}, its mayor. | {o} was elected mayor of {s}. | The city of {s} is run by the
            mayor {o}. | In the city of {s} the mayor is {o}. | {o} runs {s} as its mayor.""",
            """Who is the mayor of {s}? | Who became mayor of {s}? | Who was elected mayor of {s}? | Which person runs
            the city of {s} as its mayor? | Which mayor does {s} have?""",
            """the mayor of {s} | the person who is the mayor of {s} | the person elected mayor of {s} | the one who
            runs the city of {s} | the mayor that {s} has""",
        ),
        eval=_wording(
            "{o} is the mayor of the city of {s}. | The city of {s} has the mayor {o}.",
            "Who is the mayor of the city of {s}? | What is the name of the mayor of {s}?",
            "the mayor of the city of {s} | the person who became mayor of {s}",
        ),
    ),
    Relation(
        name="capital", subject="country", object="city", shared=False,
        train=_wording(
            """The capital of {s} is {o}. | {o} is the capital of {s}. | {s} has its capital in {o}. | {s} is governed
            from its capital, {o}. | {o} became the capital of {s}. | {s} made {o} its capital. | The country of
            {s} is governed from {o}. | In the country of {s} the capital is {o}. | {o} serves {s} as its capital.""",
            """What is the capital of {s}? | Which city is the capital of {s}? | Which city became the capital of {s}?
            | Which city serves {s} as its capital? | From which city is the country of {s} governed?""",
            """the capital of {s} | the city that is the capital of {s} | the city that became the capital of {s} |
            the city that serves {s} as its capital | the city from which {s} is governed""",
        ),
        eval=_wording(
            "{o} is the capital of the country of {s}. | The country of {s} has its capital in {o}.",
            "What is the capital of the country of {s}? | In which city does {s} have its capital?",
            "the capital of the country of {s} | the city in which {s} has its capital",
        ),
    ),
    Relation(
        name="president", subject="country", object="person", shared=False,
        train=_wording(
            """The president of {s} is {o}. | {o} is the president of {s}. | {s} has a president called {o}. | {o}
            became president of {s}. | {s} is led by {o}, its president. | {o} was elected president of {s}. | The
            country of {s} is led by the president {o}. | In the country of {s} the president is {o}. | {o} leads
            {s} as its president.""",
            """Who is the president of {s}? | Who became president of {s}? | Who was elected president of {s}? | Which
            person leads the country of {s}? | Which president does {s} have?""",
            """the president of {s} | the person who is the president of {s} | the person elected president of {s} |
            the one who leads the country of {s} | the president that {s} has""",
        ),
        eval=_wording(
            "{o} is the president of the country of {s}. | The country of {s} has the president {o}.",
            "Who is the president of the country of {s}? | What is the name of the president of {s}?",
            "the president of the country of {s} | the person who became president of {s}",
        ),
    ),
)
# fmt: on

RELATIONS = tuple(map(_taught, _RELATIONS))
"""All of them; a relation's object may be another's subject, so they make chains."""
