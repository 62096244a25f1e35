"""MinHash-LSH by datatrove: signatures of documents, pairs with an equal bucket, clusters of pairs."""

from typing import Any

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupSignature

from lepta.corpora.settings import Deduplicate
from lepta.corpora.words import WORDS, ngram_hashes, word_hashes

BLOCK = 1024  # runs of words that are hashed at once: 0.11 us each for 112 hashes, and they stay in the cache


def minhash_config(settings: Deduplicate, seed: int) -> MinhashConfig:
    """Give datatrove's settings."""
    return MinhashConfig(
        n_grams=settings.ngram, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes, seed=seed
    )


class Signatures(MinhashDedupSignature):
    """datatrove's signatures, over words of any language, in memory that does not grow with the document."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=WORDS)

    def get_shingles(self, text: str) -> np.ndarray:
        """Hash the runs of words of a text as uint64 (runs, 1); a text shorter than a run is one run."""
        words = word_hashes(text)
        return ngram_hashes(words, min(self.config.n_grams, len(words)))[:, None] if len(words) else words[:, None]

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Compute the smallest value of each hash, by bucket.

        The hashes are a x + b modulo 2^64 (x is random already), not modulo a prime: 30 times as fast. The last three
        bits go because datatrove's buckets end at 2^61.
        """
        a, b = self.parameters
        smallest = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), BLOCK):
            np.minimum(smallest, (shingles[start : start + BLOCK] * (a | np.uint64(1)) + b).min(axis=0), out=smallest)
        return [part.tolist() for part in np.split(smallest >> np.uint64(3), self.config.num_buckets)]


class Clusters(MinhashDedupCluster):
    """datatrove's clusters, but of each the first document is kept, whatever order the pairs come in."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read pairs (task, document, task, document); write for each task which documents go."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        parts = []
        for name in sorted(self.input_folder.list_files(glob_pattern="*.dups")):
            with self.input_folder.open(name, "rb") as file:
                parts.append(np.frombuffer(file.read(), "<u4").astype(np.uint64).reshape(-1, 2))
        documents = np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
        nodes, index = np.unique(documents[:, 0] << np.uint64(32) | documents[:, 1], return_inverse=True)
        left, right = index[::2], index[1::2]
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(nodes), len(nodes)))
        _, cluster = connected_components(graph, directed=False) if len(nodes) else (0, np.empty(0, np.int64))
        first = np.zeros(len(nodes), bool)
        first[np.unique(cluster, return_index=True)[1]] = True  # nodes are in the order of the corpus
        gone = nodes[~first]
        tasks = gone >> np.uint64(32)
        for task in np.unique(tasks):
            with self.output_folder.open(f"{int(task):06d}.remove", "wb") as file:
                file.write((gone[tasks == task] & np.uint64(0xFFFFFFFF)).astype("<u4").tobytes())
