"""Frozen experts in an exported graph: each placeholder node gives way to its expert's graph."""

import onnx
from onnx import helper
from torch import nn

from export.graph import INNER, make_model
from recsys_moe.errors import ArtifactError
from recsys_moe.moe.banks_frozen import PLACEHOLDER_DOMAIN, FrozenBank


def inline_experts(core: onnx.ModelProto, model: nn.Module) -> None:
    """Put the graphs of a model's frozen experts where its exported graph has a node for them.

    An expert that several gates use is in it as often, its constants once.

    Raises:
        ArtifactError: A node stands for an expert that the model does not have.
    """
    experts = {bank.digest: bank for bank in model.modules() if isinstance(bank, FrozenBank)}
    if not experts:
        return
    numbers = {digest: number for number, digest in enumerate(sorted(experts))}
    graph = core.graph
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for place, node in enumerate(graph.node):
        if node.domain != PLACEHOLDER_DOMAIN:
            nodes.append(node)
            continue
        digest = str(helper.get_node_attr_value(node, "digest").decode())
        if digest not in experts:
            raise ArtifactError("frozen expert", wanted="one of the model", got=digest)
        prefix = f"core{INNER}expert{numbers[digest]}"
        inner, tensors = _inlined(experts[digest], node, prefix, place)
        nodes += inner
        constants |= {tensor.name: tensor for tensor in tensors}
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants.values())
    imports = make_model(graph).opset_import
    del core.opset_import[:]
    core.opset_import.extend(imports)


def _inlined(
    bank: FrozenBank, place: onnx.NodeProto, prefix: str, number: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return an expert's nodes and constants, renamed to read and write what its node did."""
    graph = onnx.load_from_string(bank.content).graph
    fixed = {tensor.name for tensor in graph.initializer}
    outer = {graph.input[0].name: place.input[0], graph.output[0].name: place.output[0]}

    def renamed(name: str) -> str:
        if not name or name in outer:
            return str(outer.get(name, ""))
        return f"{prefix}{INNER}{name}" if name in fixed else f"{prefix}.{number}{INNER}{name}"

    for index, node in enumerate(graph.node):
        node.name = f"{prefix}.{number}{INNER}node_{index}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
        tensor.ClearField("doc_string")
    return list(graph.node), list(graph.initializer)
