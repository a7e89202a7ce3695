"""Whether a change is worth it: what it saves, what it takes, and how many there were of late. Pure."""

from router.policy.cost import Cost
from router.policy.observation import Seen

UNITS = {"throughput": "ms of a shard", "latency": "ms alone", "energy": "J"}


def why_not_worth_it(seen: Seen, current: Cost, new: Cost, changing_ms: float, patience: float = 1.0) -> str:
    """What speaks against something cheaper: it would ...; "": nothing. With patience it has to save more."""
    loop = seen.repository.loop
    if new.most > current.least * (1 - patience * loop.hysteresis):
        share = new.amount / max(1e-12, current.amount)
        return f"cost {share:.0%} of it, too little less to be sure"
    if seen.repository.objective == "energy":
        return ""
    if (current.amount - new.amount) * loop.amortise_over < changing_ms:
        return f"not win back the time of the swap in {loop.amortise_over} requests"
    return ""


def spent(seen: Seen) -> str:
    """What the budget of swaps says against another one; "": nothing."""
    loop, standing = seen.repository.loop, seen.standing
    window = loop.swap_window * standing.num_shards
    late = [at for at in standing.swapped_at if standing.num_requests - at < window]
    if len(late) < loop.max_swaps:
        return ""
    return f"but there have been {loop.max_swaps} swaps of late: not another one"


def compared(seen: Seen, new: Cost, name: str, old: Cost) -> str:
    """Of something new: so much a request, and what is called by `name` so much."""
    return f"{new.amount:.3g} {unit(seen)} a request, {name} {old.amount:.3g}"


def unit(seen: Seen) -> str:
    """Of costs."""
    return UNITS[seen.repository.objective]
