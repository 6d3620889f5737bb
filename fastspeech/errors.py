"""The errors a user of the library can act on. Each message names the item, the fault and the remedy."""


class AudioError(ValueError):
    """Audio that cannot be read or must not be transcribed: missing, corrupt, empty, NaN, wrong rank, wrong rate."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded: no weights, a missing or misshapen tensor, an unsafe path, an unknown model,
    settings that make none."""


class StreamingError(RuntimeError):
    """A call that a stream's state does not allow: closed, flushed, no slot free, or its queue is full."""


class QueueFullError(StreamingError):
    """A push for which a stream's queue has no room; the same push may succeed after some steps."""
