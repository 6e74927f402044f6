"""Hashes as codes in the graph: of one text, and of several columns taken together.

Shapes: B batch.
"""

import numpy as np

from export.graph import INT64, STRING, GraphBuilder
from recsys_moe.feature import NULL_PART, PART_SEPARATOR
from recsys_moe.spec import FIRST_OOV, INT64_MISSING, MISSING_CODE, Crossed, FeatureSpec


def hash_codes(graph: GraphBuilder, text: str, num_buckets: int) -> str:
    """Return 2 + MurmurHash3 modulo the buckets, int64, of texts of any shape."""
    hashed = graph.add("MurmurHash3", text, domain="com.microsoft", positive=1, seed=0)
    wide = graph.add("Cast", hashed, to=INT64)
    bucket = graph.add("Mod", wide, graph.constant(num_buckets, np.int64))
    return graph.add("Add", bucket, graph.constant(FIRST_OOV, np.int64))


def crossed(graph: GraphBuilder, spec: FeatureSpec, feature: Crossed) -> str:
    """Return the codes of a cross, int64 [B, 1]: one hash of all its parts."""
    null, separator = (graph.constant(text, object) for text in (NULL_PART, PART_SEPARATOR))
    joined = all_missing = ""
    for name in feature.columns:
        if spec.column(name).type == "string":
            text, missing = name, graph.add("Equal", name, graph.constant("", object))
        else:
            text = graph.add("Cast", name, to=STRING)
            missing = graph.add("Equal", name, graph.constant(INT64_MISSING, np.int64))
        part = graph.add("Where", missing, null, text)
        if not joined:
            joined, all_missing = part, missing
            continue
        joined = graph.add("StringConcat", graph.add("StringConcat", joined, separator), part)
        all_missing = graph.add("And", all_missing, missing)
    codes = hash_codes(graph, joined, spec.table(feature.table).num_oov)
    known = graph.add("Where", all_missing, graph.constant(MISSING_CODE, np.int64), codes)
    return graph.add("Unsqueeze", known, graph.constant([1], np.int64))
