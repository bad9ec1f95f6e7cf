"""The unreadable examples that the processes of a run have found."""

import itertools

from flax_resnet.training.input.feeds import Feed
from flax_resnet.training.processes.exchange import gather


def all_unreadable(feed: Feed) -> dict[int, int]:
    """Return the unreadable examples that any process has found: {index: step at which it was found}.

    Each process decodes its own rows. What the others have found is new to this one, and counts for its limit too.

    Raises:
      DataError: together, they are more than `data.max_bad_images`.
    """
    found = gather([[index, step] for index, step in feed.bad.items()])
    steps: dict[int, int] = {}
    for index, step in sorted(itertools.chain.from_iterable(found)):
        steps.setdefault(index, step)
    feed.learn_bad(steps)
    return steps
