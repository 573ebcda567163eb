"""Bounds the replies of backbones that were not trained to end them."""

from compmem.readers import LatentReader


def keep_short(monkeypatch, tokens=16):
    """A latent reader writes few tokens: a random model goes on until it may not."""
    room = LatentReader._room
    monkeypatch.setattr(LatentReader, "_room", lambda reader, *given: min(tokens, room(reader, *given)))
