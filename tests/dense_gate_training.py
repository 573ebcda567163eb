"""Small sources of questions to train the dense gate on."""

from compmem_research.training.dense_gate.collection import Collection, Query, passages, relevant_to
from compmem_research.training.dense_gate.sources import Source

NAMES = [a + b for a in ("Bel", "Dor", "Fim", "Gan") for b in ("tal", "mor", "nep", "rud")]


def facts(group, hops):
    """A source of tenants, houses and insurers; asked for one hop or for two."""

    def collections():
        houses = [f"{name} House" for name in NAMES]
        texts = [(name, f"{name} rents {house}. It makes rockets.") for name, house in zip(NAMES, houses, strict=True)]
        texts += [(house, f"{house} is insured by Ora{n}. It is red.") for n, house in enumerate(houses)]
        count = len(NAMES)
        if hops == 1:
            queries = [
                Query(text=f"Which house does {n} rent?", relevant=relevant_to({i})) for i, n in enumerate(NAMES)
            ]
        else:
            queries = [
                Query(text=f"Who insures the house that {n} rents?", relevant=relevant_to({i, count + i}), chained=True)
                for i, n in enumerate(NAMES)
            ]
        queries.append(Query(text="How tall is the tower of Zum?", relevant=relevant_to(set())))
        yield Collection(documents=passages(texts), queries=queries, restyled=0.5)

    return Source(f"facts{hops}", group, collections)


def paragraphs(*said):
    return [{"title": title, "sentences": [text], "supporting": [0] if held else []} for title, text, held in said]
