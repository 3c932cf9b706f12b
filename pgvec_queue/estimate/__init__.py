"""What a backfill would mean, before anything is done: see ``estimator``."""

from pgvec_queue.estimate.estimator import DEFAULT_SAMPLE, Estimate, Wish, estimate

__all__ = ["DEFAULT_SAMPLE", "Estimate", "Wish", "estimate"]
