"""The models loaded in one shard and the blocks of each, as known to the router. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from router.catalog.served_model import ModelIdentity, Requirements, RoutingKey, ServedModel
from router.scheduling.request import Request
from shard.messages import StepOutput


class LoadedModel:
    """One model's blocks and how many sequences run on it."""

    def __init__(self, served_model: ServedModel):
        self.served_model = served_model
        self.num_blocks = served_model.ready.num_blocks
        self.num_free_blocks = served_model.ready.num_blocks  # as of the last output
        self.num_unclaimed_blocks = served_model.ready.num_blocks  # free, and not needed by prompts
        self.num_running = 0
        self.is_closed = False  # takes back only requests that can go nowhere else

    @property
    def epoch(self) -> int:
        return self.served_model.epoch

    def claim(self, num_blocks: int) -> None:
        """Count a sequence that runs here and needs `num_blocks` more blocks."""
        self.num_unclaimed_blocks -= num_blocks
        self.num_running += 1


class LoadedModels:
    """The newest model, on which requests begin, and those before it that still have sequences."""

    def __init__(self, served_model: ServedModel):
        self.newest = LoadedModel(served_model)
        self._by_epoch = {served_model.epoch: self.newest}

    def __len__(self) -> int:
        return len(set(self._by_epoch.values()))

    def model_of(self, request: Request) -> LoadedModel:
        """The model of a running request."""
        assert request.served_model is not None
        return self._by_epoch[request.served_model.epoch]

    def adopt(self, served_model: ServedModel, joined: int | None, running: Iterable[Request]) -> None:
        """Make a committed model the newest. Older ones without sequences are forgotten.

        `joined`: an older epoch of the same model in the shard; its entry becomes the newest.
        """
        before = self._by_epoch.get(joined) if joined is not None else None
        self.newest = LoadedModel(served_model)
        for epoch, loaded_model in self._by_epoch.items():
            self._by_epoch[epoch] = self.newest if loaded_model is before else loaded_model
        self._by_epoch[served_model.epoch] = self.newest
        self._keep(set(), running)

    def close_older(self) -> None:
        """Let no request return to an older model that can go on with the newest."""
        for loaded_model in self._by_epoch.values():
            loaded_model.is_closed = loaded_model is not self.newest

    def count(self, claims: Mapping[int, Sequence[int]]) -> None:
        """Recount the running requests: by epoch, the blocks that each needs for its pending tokens."""
        for loaded_model in self._by_epoch.values():
            loaded_model.num_unclaimed_blocks, loaded_model.num_running = loaded_model.num_free_blocks, 0
        for epoch, num_blocks in claims.items():
            loaded_model = self._by_epoch[epoch]
            loaded_model.num_unclaimed_blocks -= sum(num_blocks)
            loaded_model.num_running += len(num_blocks)

    def update(self, output: StepOutput, running: Iterable[Request]) -> None:
        """Take over the shard's counts of blocks, and forget models that it no longer has."""
        newest = self._by_epoch.get(output.epoch)
        if newest is not None:
            newest.num_free_blocks = output.num_free_blocks
            newest.num_blocks = newest.num_blocks if output.num_blocks is None else output.num_blocks
        for report in output.older:
            if report.epoch in self._by_epoch:
                self._by_epoch[report.epoch].num_free_blocks = report.num_free_blocks
        if len(self._by_epoch) > 1:
            self._keep({report.epoch for report in output.older}, running)

    def place(
        self,
        requirements: Requirements,
        affine_elsewhere: frozenset[ModelIdentity] = frozenset(),
        excluded_keys: frozenset[RoutingKey] = frozenset(),
    ) -> LoadedModel | None:
        """The model for a waiting request: the one that began it while that is here, else the newest.

        None if another shard has the model that began it (`affine_elsewhere`), or if it was not begun and its
        routing key is among `excluded_keys`.
        """
        affinity = next(
            (
                loaded_model
                for loaded_model in self._by_epoch.values()
                if self._is_affine(loaded_model, requirements)
            ),
            None,
        )
        if (
            affinity is not None
            or requirements.affinity in affine_elsewhere
            or (excluded_keys and requirements.routing_key in excluded_keys)
        ):
            return affinity
        return self.newest if self.newest.served_model.takes(requirements) else None

    def has_model(self, identity: ModelIdentity) -> bool:
        """The model is here, and takes back requests that it began."""
        loaded_models = self._by_epoch.values()
        return any(
            loaded_model.served_model.identity == identity and not loaded_model.is_closed
            for loaded_model in loaded_models
        )

    def _is_affine(self, loaded_model: LoadedModel, requirements: Requirements) -> bool:
        if loaded_model.served_model.identity != requirements.affinity:
            return False
        return not loaded_model.is_closed or not self.newest.served_model.takes(requirements)

    def _keep(self, epochs: set[int], running: Iterable[Request]) -> None:
        epochs |= {request.served_model.epoch for request in running if request.served_model is not None}
        epochs.add(self.newest.epoch)
        epochs |= {loaded_model.epoch for epoch, loaded_model in self._by_epoch.items() if epoch in epochs}
        self._by_epoch = {
            epoch: loaded_model for epoch, loaded_model in self._by_epoch.items() if epoch in epochs
        }
