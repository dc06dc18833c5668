"""The base's graph -> the graph of one avatar on a graphics card: constants bound, references resident, types chosen.

`generator.onnx` serves every backend; this is what a card gets instead of it:

- The person's numbers are constants, and what is not asked for is cut away.
- The dense maps are laid out here (`engine.geometry.mesh_flows`, as products of matrices), so that landmarks go up
  and no maps: 76 kB a frame instead of 0.6 MB.
- All references of the avatar lie on the card, above each other in one tall picture per kind; which four of them serve
  is an input of four numbers (`chosen`). A change of reference copies nothing: it moves where the samples are taken.
- At sizes above the network's own the photos are warped here too, as `engine.renderer` does it on a CPU, so that the
  finished picture and its matte are all that leaves the card.
- Convolutions and what lies between them are float16. Grids, flows and all that a sample is taken by stay float32 (an
  atlas has up to 12 x 720 rows, a float16 has 11 bits: it would be off by pixels), and so do the statistics of the
  normalisations (sums over 4096 pixels) and the last layer of the motion, whose error is a shift of the picture.

In, per frame: `raster`, `tile`, `detail` as in the base, `target [478, 2]` in crop units, `maps` and `weights` as in
`engine.geometry.Brief`, and `chosen [4]` int32. In, once per avatar, R references: `pictures [1, 4, R S, S]`,
`thumbnails [1, 4, R S/4, S/4]`, `features [1, C, R S/4, S/4]`, `reference_raster [R, 3, S/4, S/4]`, their landmarks
`points [R, 478, 2]`, and above the network's size `full [1, 3, R s, s + 2 side_px(s)]` in levels (0 to 255). Out:
`rgb [1, s, s, 3]` and `matte [1, s, s]`, uint8. Needs the package `onnx`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.frames import POINT_COUNT
from engine.geometry import (
    AFFINE_COUNT,
    DETAIL_COUNT,
    GRID,
    GRID_PX,
    LEAST_SPREAD,
    LOWER_MESH,
    MAP_COUNT,
    SPREADS,
    UPPER_MESH,
)
from engine.references import side_px

if TYPE_CHECKING:
    import onnx

Tensors = Mapping[str, NDArray[np.generic]]
Precision = Literal["f16", "f32"]

FRAME_INPUTS = ("raster", "tile", "detail", "target", "maps", "weights", "chosen")
RESIDENT_INPUTS = ("pictures", "thumbnails", "features", "reference_raster", "points", "full")
OUTPUTS = ("rgb", "matte")
KEPT_F32 = frozenset({"motion.leave.weight"})
"""Convolutions that stay float32, by their weights."""

_ATLASES = ("pictures", "thumbnails", "features")
_TILES = 4
_FOLLOWS = {"Relu", "Add", "DepthToSpace", "Resize"}  # float16 when all they are given is


def card_graph(model: Path, constants: Tensors, references: int, size_px: int, precision: Precision) -> bytes:
    """The serialised ONNX graph for an avatar with that many references, drawn at `size_px`.

    Raises `ValueError` with one sentence when the file is no base of this version.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = _Graph(onnx.load(str(model)))
    except (DecodeError, OSError) as error:
        raise ValueError(f"{model} cannot be read as a network: install the program again") from error
    try:
        graph.bind(constants)
        network_px = graph.shape("pictures")[3]
        graph.take_bytes()
        levels = {name: graph.levels(name) for name in ("rgb", "matte", "weight", "synthesised")}
        graph.keep_references_resident(references)
        graph.feed("grids", lambda: _grids(graph, references))
        if size_px == network_px:
            finished = levels["rgb"], levels["matte"]
        else:
            finished = _enlarged(graph, levels, references, size_px)
        graph.end_in(*finished, size_px)
        if precision == "f16":
            graph.halve()
        graph.sort()
        onnx.checker.check_model(graph.model, full_check=True)
    except (KeyError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{model} is no base model that a graphics card can draw ({error})") from error
    return graph.model.SerializeToString()


def _grids(graph: _Graph, references: int) -> str:
    """`grids` of `engine.geometry.condition` from `target`, `points`, `maps`, `weights` and `tile`."""
    cells, count = GRID_PX * GRID_PX, POINT_COUNT
    graph.add_input("target", "f32", (count, 2))
    graph.add_input("points", "f32", (references, count, 2))
    graph.add_input("maps", "f32", (AFFINE_COUNT + _TILES - 1, 2, 3))
    graph.add_input("weights", "f32", (count,))

    def shaped(tensor: str, *shape: int) -> str:
        return graph.op("Reshape", tensor, graph.ints(list(shape)))

    def mapped(maps: str, number: int, points: str) -> str:
        """`[number, 2, 3]` and `[1, n, 2]` -> `[number, n, 2]`; sums of products, for no unit shortens those."""
        columns = [shaped(graph.part(maps, 2, index, index + 1), number, 1, 2) for index in range(3)]
        sides = [graph.part(points, 2, index, index + 1) for index in range(2)]
        products = [graph.op("Mul", side, column) for side, column in zip(sides, columns[:2], strict=True)]
        return graph.op("Add", graph.op("Add", *products), columns[2])

    own_heads = graph.part("maps", 0, AFFINE_COUNT, AFFINE_COUNT + _TILES - 1)
    heads = graph.op("Concat", graph.part("maps", 0, 0, 1), own_heads, axis=0)
    grid = graph.constant(GRID.reshape(1, cells, 2))
    affine, similar = mapped(graph.part("maps", 0, 0, AFFINE_COUNT), AFFINE_COUNT, grid), mapped(heads, _TILES, grid)

    # Each landmark's leftover onto its four cells: tents over rows times tents over columns.
    there = graph.op("Gather", "points", "chosen", axis=0)
    left = graph.op("Sub", there, mapped(heads, _TILES, graph.op("Unsqueeze", "target", graph.ints([0]))))
    left = shaped(graph.op("Transpose", left, perm=[0, 2, 1]), 2 * _TILES, count)
    carried = graph.op("Concat", left, graph.constant(np.ones((1, count), np.float32)), axis=0)
    places = graph.op("Mul", graph.op("Add", "target", graph.number(1)), graph.number(GRID_PX / 2))
    places = graph.op("Sub", places, graph.number(0.5))
    lines = graph.constant(np.arange(GRID_PX, dtype=np.float32))

    def tents(side: int) -> str:
        away = graph.op("Abs", graph.op("Sub", graph.part(places, 1, side, side + 1), lines))
        return graph.op("Relu", graph.op("Sub", graph.number(1), away))  # [478, 64]

    members = np.stack([np.isin(np.arange(count), mesh) for mesh in (UPPER_MESH, LOWER_MESH)])
    counted = graph.op("Mul", graph.constant(members[:, None].astype(np.float32)), "weights")
    carried = graph.op("Mul", carried, counted)  # [2, 9, 478]
    rows = graph.op("Transpose", tents(1), perm=[1, 0])
    splat = graph.op("Mul", graph.op("Unsqueeze", carried, graph.ints([2])), rows)  # [2, 9, 64, 478]
    splat = graph.op("MatMul", splat, tents(0))
    spread = ""
    for kernel, weight in SPREADS:
        half = len(kernel) // 2
        blur = sum(float(one) * np.eye(GRID_PX, k=k - half, dtype=np.float32) for k, one in enumerate(kernel[:, 0]))
        across, down = graph.constant(np.asarray(blur)), graph.constant(np.asarray(blur * weight))
        blurred = graph.op("MatMul", graph.op("MatMul", down, splat), across)
        spread = graph.op("Add", spread, blurred) if spread else blurred
    total = graph.op("Add", graph.part(spread, 1, 2 * _TILES, 2 * _TILES + 1), graph.number(LEAST_SPREAD))
    spread = graph.op("Div", graph.part(spread, 1, 0, 2 * _TILES), total)
    spread = graph.op("Transpose", shaped(spread, 2, _TILES, 2, cells), perm=[0, 1, 3, 2])
    meshes = graph.op("Add", spread, similar)  # [2, 4, 4096, 2]

    tile = shaped(graph.op("Cast", "tile", to=_FLOAT), 1, cells, 1)
    all_b = graph.op("Concat", graph.op("Unsqueeze", similar, graph.ints([0])), meshes, axis=0)  # [3, 4, 4096, 2]
    slot_b = ""
    for reference in (1, 2, 3):
        own = graph.op("Cast", graph.op("Equal", tile, graph.number(reference)), to=_FLOAT)
        part = graph.op("Mul", shaped(graph.part(all_b, 1, reference, reference + 1), 3, cells, 2), own)
        slot_b = graph.op("Add", slot_b, part) if slot_b else part
    slot_a = shaped(graph.part(meshes, 1, 0, 1), 2, cells, 2)
    every = graph.op("Concat", affine, slot_a, slot_b, axis=0)
    return shaped(every, 1, MAP_COUNT + DETAIL_COUNT, GRID_PX, GRID_PX, 2)


def _enlarged(graph: _Graph, levels: dict[str, str], references: int, size_px: int) -> tuple[str, str]:
    """Picture `[1, 3, s, s]` and matte `[1, s, s]`, both in levels plus a half, with the photos at full size.

    The same arithmetic as `engine.renderer`'s, in floating point.
    """
    size, rim = [1, -1, size_px, size_px], 1 - 1 / size_px
    wide_px = size_px + 2 * side_px(size_px)
    graph.add_input("full", "f32", (1, 3, references * size_px, wide_px))

    def level(name: str) -> str:
        return graph.op("Sub", levels[name], graph.number(0.5))

    def enlarge(tensor: str, mode: str) -> str:
        return graph.resized(tensor, size, mode)

    flow = graph.op("Reshape", graph.op("Transpose", "flow", perm=[0, 1, 4, 2, 3]), graph.ints([2, 2, 64, 64]))
    flow_a, flow_b = graph.part(flow, 0, 0, 1), graph.part(flow, 0, 1, 2)
    x_b, y_b = graph.part(flow_b, 1, 0, 1), graph.part(flow_b, 1, 1, 2)
    # Clamped before it is enlarged, or the enlarged edge would be another one.
    flow_b = graph.op("Concat", x_b, graph.op("Clip", y_b, graph.number(-rim), graph.number(rim)), axis=1)
    slot_a = graph.op("Reshape", graph.part("chosen", 0, 0, 1), graph.ints([1, 1, 1, 1]))
    tile = graph.op("Unsqueeze", graph.op("Cast", "tile", to=_FLOAT), graph.ints([1]))
    slot_b = graph.op("Gather", "chosen", graph.op("Cast", enlarge(tile, "nearest"), to=_INT32), axis=0)
    grids = []
    for one, slot in ((flow_a, slot_a), (flow_b, slot_b)):
        fine = enlarge(one, "linear")
        y = graph.op("Clip", graph.part(fine, 1, 1, 2), graph.number(-rim), graph.number(rim))
        y = graph.op("Mul", graph.op("Add", y, graph.number(1)), graph.number(0.5))
        y = graph.op("Add", y, graph.op("Cast", slot, to=_FLOAT))
        y = graph.op("Sub", graph.op("Mul", y, graph.number(2 / references)), graph.number(1))
        x = graph.op("Mul", graph.part(fine, 1, 0, 1), graph.number(size_px / wide_px))
        where = graph.op("Concat", x, y, axis=1)
        grids.append(graph.op("Transpose", where, perm=[0, 2, 3, 1]))
    grid = graph.op("Concat", *grids, axis=1)
    looks = graph.op("GridSample", "full", grid, mode="bilinear", padding_mode="border", align_corners=0)
    shown = [graph.part(looks, 2, 0, size_px), graph.part(looks, 2, size_px, 2 * size_px)]
    painted = enlarge(level("synthesised"), "cubic")
    shown.append(graph.op("Clip", painted, graph.number(0), graph.number(255)))
    weight = graph.op("Mul", enlarge(level("weight"), "linear"), graph.number(1 / 255))
    shares = [graph.op("Mul", graph.part(weight, 1, i, i + 1), look) for i, look in enumerate(shown)]
    picture = graph.op("Add", graph.op("Add", *shares[:2]), shares[2])
    picture = graph.op("Add", graph.op("Clip", picture, graph.number(0), graph.number(255)), graph.number(0.5))
    matte = graph.op("Unsqueeze", level("matte"), graph.ints([1]))
    matte = graph.op("Squeeze", enlarge(matte, "linear"), graph.ints([1]))
    return picture, graph.op("Add", matte, graph.number(0.5))


_FLOAT, _UINT8, _INT32, _FLOAT16 = 1, 2, 6, 10  # onnx.TensorProto


class _Graph:
    """An ONNX graph that is rewritten: names by producer and consumer, and a few ways to add to it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._graph = model.graph
        self._count = 0

    # --- reading ---

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an input or output; `KeyError` when there is none of that name."""
        for value in (*self._graph.input, *self._graph.output):
            if value.name == name:
                return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        raise KeyError(f"it has no {name!r}")

    def _producer(self, name: str) -> onnx.NodeProto:
        for node in self._graph.node:
            if name in node.output:
                return node
        raise KeyError(f"nothing in it makes {name!r}")

    def levels(self, output: str) -> str:
        """The float tensor, colours before rows and columns, that the bytes of an output are cut from."""
        node = self._producer(output)
        if node.op_type == "Transpose":
            node = self._producer(node.input[0])
        if node.op_type != "Cast":
            raise KeyError(f"its output {output!r} is not cut from numbers")
        return node.input[0]

    # --- adding ---

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"card/{kind}_{self._count}"

    def constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self._fresh("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, np.float32))

    def ints(self, values: list[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = self._fresh(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def part(self, tensor: str, axis: int, start: int, stop: int) -> str:
        return self.op("Slice", tensor, self.ints([start]), self.ints([stop]), self.ints([axis]))

    def resized(self, tensor: str, size: list[int], mode: str) -> str:
        """`[1, C, h, w]` at another size, by OpenCV's conventions."""
        channels = self.op("Slice", self.op("Shape", tensor), self.ints([0]), self.ints([2]))
        whole = self.op("Concat", channels, self.ints(size[2:]), axis=0)
        how: dict[str, Any] = {"coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif mode == "cubic":
            how["cubic_coeff_a"] = -0.75
        return self.op("Resize", tensor, "", "", whole, mode=mode, **how)

    def add_input(self, name: str, kind: Literal["f32", "i32"], shape: tuple[int, ...]) -> None:
        from onnx import helper

        self._graph.input.append(helper.make_tensor_value_info(name, {"f32": _FLOAT, "i32": _INT32}[kind], shape))

    # --- rewriting ---

    def _reroute(self, old: str, make: Callable[[], str]) -> None:
        """Whoever reads `old` reads what `make` adds instead; `make` itself may read `old`."""
        readers = [node for node in self._graph.node if old in node.input]
        new = make()
        for node in readers:
            node.input[:] = [new if name == old else name for name in node.input]

    def _remove_input(self, name: str) -> None:
        for index, value in enumerate(self._graph.input):
            if value.name == name:
                del self._graph.input[index]
                return

    def bind(self, constants: Tensors) -> None:
        """Inputs become constants. Raises `ValueError` for a name or a shape that the graph does not have."""
        from onnx import numpy_helper

        for name, value in constants.items():
            known = [one.name for one in self._graph.input]
            if name not in known:
                raise ValueError(f"the base model has no input {name!r}, only {', '.join(known)}")
            if value.shape != (shape := self.shape(name)):
                raise ValueError(f"{name!r} has shape {list(value.shape)}, and the base model wants {list(shape)}")
            self._remove_input(name)
            bound = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
            self._graph.initializer.append(bound)

    def take_bytes(self) -> None:
        """TensorRT moves no bytes about: inputs of bytes become numbers before anything else is done to them."""
        for value in list(self._graph.input):
            if value.type.tensor_type.elem_type == _UINT8:
                self._reroute(value.name, functools.partial(self.op, "Cast", value.name, to=_FLOAT))

    def feed(self, name: str, make: Callable[[], str]) -> None:
        """What was an input is made by the graph itself."""
        self._reroute(name, make)
        self._remove_input(name)

    def keep_references_resident(self, references: int) -> None:
        """Atlases of the four chosen references become atlases of all of them, sampled where `chosen` says."""
        shapes = {name: self.shape(name) for name in (*_ATLASES, "reference_raster")}
        self.add_input("chosen", "i32", (_TILES,))
        away = self.op("Sub", self.op("Cast", "chosen", to=_FLOAT), self.constant(np.arange(_TILES, dtype=np.float32)))
        found = set()
        for node in [node for node in self._graph.node if node.op_type == "GridSample"]:
            name, grid = node.input
            if name not in _ATLASES:
                raise KeyError(f"it samples {name!r}, which is no atlas of references")
            found.add(name)
            x, y = self.part(grid, 3, 0, 1), self.part(grid, 3, 1, 2)
            tiles = self.op("Mul", self.op("Add", y, self.number(1)), self.number(_TILES / 2))
            tile = self.op("Clip", self.op("Floor", tiles), self.number(0), self.number(_TILES - 1))
            moved = self.op("Gather", away, self.op("Cast", tile, to=_INT32), axis=0)
            moved = self.op("Mul", self.op("Add", tiles, moved), self.number(2 / references))
            node.input[1] = self.op("Concat", x, self.op("Sub", moved, self.number(1)), axis=3)
        if missing := sorted(set(_ATLASES) - found):
            raise KeyError(f"it never samples {missing[0]!r}")
        front = self.part("chosen", 0, 0, 1)
        self._reroute("reference_raster", lambda: self.op("Gather", "reference_raster", front, axis=0))
        for name, shape in shapes.items():
            self._remove_input(name)
            if name == "reference_raster":
                self.add_input(name, "f32", (references, *shape[1:]))
            else:
                self.add_input(name, "f32", (1, shape[1], references * shape[2] // _TILES, shape[3]))

    def end_in(self, picture: str, matte: str, size_px: int) -> None:
        """`rgb` and `matte` as the only outputs, in bytes, and nothing left that they do not need."""
        from onnx import helper

        for node in self._graph.node:
            node.output[:] = [f"base/{name}" if name in OUTPUTS else name for name in node.output]
            node.input[:] = [f"base/{name}" if name in OUTPUTS else name for name in node.input]
        shaped = self.op("Transpose", picture, perm=[0, 2, 3, 1])
        for name, levels in (("rgb", shaped), ("matte", matte)):
            self._graph.node.append(helper.make_node("Cast", [levels], [name], name=f"card/{name}", to=_UINT8))
        del self._graph.output[:]
        shapes = {"rgb": (1, size_px, size_px, 3), "matte": (1, size_px, size_px)}
        self._graph.output.extend(helper.make_tensor_value_info(name, _UINT8, shapes[name]) for name in OUTPUTS)
        self._prune()

    def _prune(self) -> None:
        producers = {name: node for node in self._graph.node for name in node.output}
        needed: set[str] = set()
        waiting: list[str] = list(OUTPUTS)
        while waiting:
            name = waiting.pop()
            if name and name not in needed:
                needed.add(name)
                waiting.extend(producers[name].input if name in producers else ())
        for listed in (self._graph.node, self._graph.initializer, self._graph.input):
            kept = [one for one in listed if needed & set(getattr(one, "output", None) or [one.name])]
            del listed[:]
            listed.extend(kept)  # pyright: ignore[reportArgumentType]
        del self._graph.value_info[:]

    def sort(self) -> None:
        """Every node after those it needs, as the format wants it."""
        made = {"", *(one.name for one in (*self._graph.input, *self._graph.initializer))}
        waiting, ordered = list(self._graph.node), []
        while waiting:
            ready = [node for node in waiting if made.issuperset(node.input)]
            if not ready:
                raise KeyError("it runs in a circle")
            ordered.extend(ready)
            made.update(name for node in ready for name in node.output)
            waiting = [node for node in waiting if not made.issuperset(node.output)]
        del self._graph.node[:]
        self._graph.node.extend(ordered)

    def halve(self) -> None:
        """Convolutions and what lies between them in float16, everything else as it is."""
        from onnx import helper, numpy_helper

        self.sort()
        weights = {one.name: one for one in self._graph.initializer}
        halves: dict[str, str] = {}
        floats: dict[str, str] = {}
        born_half: set[str] = set()
        ordered: list[onnx.NodeProto] = []

        def cast(name: str, to: int, made: dict[str, str]) -> str:
            if name not in made:
                made[name] = self._fresh("cast")
                ordered.append(helper.make_node("Cast", [name], [made[name]], name=made[name], to=to))
            return made[name]

        def half(name: str) -> str:
            if not name or name in born_half:
                return name
            if name in weights and name not in halves:
                halves[name] = f"{name}/f16"
                value = numpy_helper.to_array(weights[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(value, halves[name]))
            return cast(name, _FLOAT16, halves)

        for node in list(self._graph.node):
            tensors = node.input[:1] if node.op_type == "Resize" else node.input
            convolves = node.op_type == "Conv" and node.input[1] not in KEPT_F32
            nearest = node.op_type != "Resize" or any(
                one.name == "mode" and one.s == b"nearest" for one in node.attribute
            )
            if convolves or (node.op_type in _FOLLOWS and nearest and born_half.issuperset(tensors)):
                node.input[: len(tensors)] = [half(name) for name in tensors]
                born_half.update(node.output)
            else:
                node.input[:] = [cast(name, _FLOAT, floats) if name in born_half else name for name in node.input]
            ordered.append(node)
        del self._graph.node[:]
        self._graph.node.extend(ordered)
        used = {name for node in ordered for name in node.input}
        kept = [one for one in self._graph.initializer if one.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
