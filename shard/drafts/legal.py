"""Drafts of sequences with a grammar: what it forbids ends them, and what it forces is part of them."""

from shard.drafts.drafter import NUM_GRADES, Draft
from shard.engine.sequence import Sequence


def obey(draft: Draft, sequence: Sequence) -> None:
    """Cut a draft before the first guess that is illegal, in place; forced tokens replace other guesses."""
    constraint = sequence.constraint
    if constraint is None or not draft:
        return
    ids, num_known = [*sequence.token_ids], sequence.num_tokens
    for place, token_id in enumerate(draft.token_ids):
        forced = constraint.forced_token(ids, num_known + place)
        if forced is not None and forced != token_id:
            draft.token_ids[place], draft.grades[place] = forced, NUM_GRADES - 1
            draft.cut(place + 1)
            return
        if not constraint.permits(ids, num_known + place, token_id):
            draft.cut(place)
            return
        ids.append(token_id)
