"""Preference data: from a data card to a mix of pairs.

Rooms: `sources` (cards, rows, pairs), `mixing` (selection rules, duplicates, splits),
`world` (the small world whose sources the CPU lab uses); `texts` says when two texts
are the same. Knows no tokens: `chat` turns messages into token ids.
"""
