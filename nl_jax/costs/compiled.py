"""What a compiled program moves: bytes between chips and bytes of the chip's main memory, read from its HLO text.

XLA's ``cost_analysis`` counts the body of a loop once, whatever its length; here it counts once per iteration.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError

# Bytes of an element of XLA's types; a type that is not here, such as a token, takes none.
_SIZES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing through the main memory themselves.
_FREE = frozenset(
    """parameter constant bitcast get-tuple-element tuple while conditional call after-all partition-id replica-id
    copy-done slice-done async-done async-update all-gather-done all-reduce-done collective-permute-done
    opt-barrier add-dependency iota domain""".split()  # noqa: SIM905
)
_SLICES = ("dynamic-slice", "slice", "gather")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")


class Instruction(NamedTuple):
    """One line of a computation: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> str | None:
        """Name of the computation that a fusion, a call or an asynchronous instruction runs."""
        found = re.search(r"(?:calls|called_computations=\{)=?%?([\w.-]+)", self.attributes)
        if found is None and self.opcode == "call":
            found = re.search(r"to_apply=%?([\w.-]+)", self.attributes)
        return found[1] if found else None


class Collective(NamedTuple):
    """The exchanges of one kind over the same axes of the mesh, in one run of the program.

    Attributes:
        kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
        axes: names of the mesh axes over which devices exchange, joined by "+"; empty for devices that the mesh does
            not tell apart.
        times: how often.
        bytes: what one device receives, in all.

    Examples:
        >>> from nl_jax.costs import Collective
        >>> gathered = Collective("all-gather", "data+fsdp", times=4, bytes=1_000)
        >>> gathered.bytes // gathered.times  # of one exchange
        250
    """

    kind: str
    axes: str
    times: int
    bytes: int


class Traffic(NamedTuple):
    """What one device moves in one run of a program.

    Attributes:
        memory_bytes: bytes read from and written to the main memory, by all instructions outside of fusions. What lies
            in a faster memory (memory space 1, a TPU's VMEM) is left out.
        collectives: by kind and axes.
        estimated_cycles: the compiler's own estimate, in clock cycles, where it gives one (TPU); else 0. It leaves out
            the time of waiting for other devices.

    Examples:
        >>> from nl_jax.costs import Collective, Traffic
        >>> exchanges = (Collective("all-gather", "fsdp", 4, 1_000), Collective("all-reduce", "data", 1, 500))
        >>> Traffic(memory_bytes=5_000, collectives=exchanges, estimated_cycles=0).network_bytes
        1500
    """

    memory_bytes: int
    collectives: tuple[Collective, ...]
    estimated_cycles: int

    @property
    def network_bytes(self) -> int:
        """Bytes that one device receives from others."""
        return sum(collective.bytes for collective in self.collectives)


def traffic(text: str, mesh_shape: Mapping[str, int]) -> Traffic:
    """Counts what a compiled program moves.

    Args:
        text: the program, from ``compiled.as_text()``; its schedule must be part of it, as it is for TPU and GPU.
        mesh_shape: sizes of the mesh axes by name, in the mesh's order: ``mesh.shape``.

    Raises:
        InputError: the number of iterations of a loop cannot be found, or a conditional or a collective has a form that
            is not known.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.costs import traffic
        >>> x = jnp.ones((256, 256))
        >>> compiled = jax.jit(lambda x: jnp.sum(x)).lower(x).compile()
        >>> found = traffic(compiled.as_text(), {})
        >>> found.memory_bytes >= x.nbytes, found.collectives
        (True, ())
    """
    program = _Program(text)
    memory = cycles = 0
    found: dict[tuple[str, str], list[int]] = {}
    seen: set[str] = set()
    for name, times in program.times.items():
        for instruction in program.computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # so TPU programs spell it
                kind = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if kind in _COLLECTIVES and not (channel and channel[1] in seen):
                # one exchange can appear in several fusions, which are its start, its middle and its end
                seen |= {channel[1]} if channel else set()
                axes, size = _axes_and_size(instruction.attributes, mesh_shape)
                total = found.setdefault((kind, axes), [0, 0])
                total[0] += times
                total[1] += times * _received(kind, program, name, instruction, size)
            if name in program.fused:
                continue
            memory += times * program.memory_bytes(name, instruction)
            estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            cycles += times * int(estimate[1]) if estimate else 0
    collectives = tuple(Collective(*key, *total) for key, total in sorted(found.items()))
    return Traffic(memory, collectives, cycles)


class _Program:
    """The computations of a program, how often each runs, and which are inside fusions."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        entry, body = "", None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                body = self.computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
            elif line.rstrip() == "}":
                body = None
            elif body is not None and (match := _INSTRUCTION.match(line)):
                body.append(_instruction(match))
            elif body:  # a kernel's attributes may go on in further lines
                body[-1] = body[-1]._replace(attributes=body[-1].attributes + line)
        self.shapes = {name: {one.name: one.shape for one in body} for name, body in self.computations.items()}
        self.times: dict[str, int] = {}
        self.fused: set[str] = set()
        self._visit(entry, 1)

    def _visit(self, name: str, times: int) -> None:
        self.times[name] = self.times.get(name, 0) + times
        for instruction in self.computations[name]:
            attributes = instruction.attributes
            if instruction.opcode == "while":
                condition, body = (re.search(rf"{part}=%?([\w.-]+)", attributes) for part in ("condition", "body"))
                assert condition is not None
                assert body is not None
                self._visit(body[1], times * self._iterations(attributes, condition[1], body[1]))
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
                if branches is None:
                    raise InputError(
                        f"conditional {instruction.name}: expected branch_computations, found {attributes[:120]}"
                    )
                for branch in branches[1].split(","):  # which one runs is not known: each counts
                    self._visit(branch.strip().lstrip("%"), times)
            elif called := instruction.called:
                if instruction.opcode == "fusion":
                    self.fused.add(called)
                self._visit(called, times)

    def _iterations(self, attributes: str, condition: str, body: str) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', attributes):
            return int(known[1])
        # loops of JAX and of the partitioner count from 0 to a constant, in steps of a constant
        found = self._counter_and_bound(condition)
        step = found and self._constant(body, self._root(body).operands[found[0]])
        if found is None or step is None:
            raise InputError(f"loop with condition {condition}: expected a count to a constant in constant steps")
        return -(-found[1] // step)

    def _counter_and_bound(self, condition: str) -> tuple[int, int] | None:
        """Place of the counter in the loop's tuple, and what it must stay below."""
        named = {one.name: one for one in self.computations[condition]}
        root, operands = self._root(condition), self._root(condition).operands
        if root.opcode == "fusion" and root.called:
            root = self._root(root.called)
        counter = next((named[name] for name in operands if named[name].opcode == "get-tuple-element"), None)
        bound = self._constant(condition, *operands)
        if root.opcode != "compare" or "direction=LT" not in root.attributes or counter is None or bound is None:
            return None
        place = re.search(r"index=(\d+)", counter.attributes)
        return (int(place[1]), bound) if place else None

    def _constant(self, computation: str, *names: str) -> int | None:
        """The integer constant among instructions or, if there is none, among their operands."""
        named = {one.name: one for one in self.computations[computation]}
        found = [named[name] for name in names]
        inside = [named[name] for one in found for name in one.operands if name in named]
        for one in (*found, *inside):
            if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.operands[0]):
                return int(one.operands[0])
        return None

    def _root(self, computation: str) -> Instruction:
        return next(one for one in self.computations[computation] if one.is_root)

    def memory_bytes(self, computation: str, instruction: Instruction) -> int:
        """Bytes that an instruction reads from and writes to the main memory."""
        opcode, shapes = instruction.opcode, self.shapes[computation]
        if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
            return 0
        if opcode in _SLICES:
            return 2 * _bytes(instruction.shape)
        if opcode == "dynamic-update-slice":
            return 2 * _bytes(shapes[instruction.operands[1]])
        if opcode in ("copy-start", "slice-start"):  # (source, target, flag): one of them is often in fast memory
            parts = list(_arrays(instruction.shape))
            moved = min(size for size, _ in parts[:2])
            return sum(moved for _, is_main in parts[:2] if is_main)
        if opcode == "fusion" and instruction.called:
            return self._fusion_bytes(instruction.called, instruction, shapes)
        return _bytes(instruction.shape) + sum(_bytes(shapes[name]) for name in instruction.operands if name in shapes)

    def _fusion_bytes(self, called: str, instruction: Instruction, shapes: Mapping[str, str]) -> int:
        """As `memory_bytes`; of an operand that the fusion only slices, or an output that it updates, the part."""
        total = 0
        outputs = [size for size, is_main in _arrays(instruction.shape) if is_main]
        for parameter in (one for one in self.computations[called] if one.opcode == "parameter"):
            place = int(parameter.operands[0])
            size = _bytes(shapes.get(instruction.operands[place], "")) if place < len(instruction.operands) else 0
            if size:
                read, written = self._used(called, parameter.name)
                total += min(size, read)
                if written and size in outputs:  # in place
                    outputs[outputs.index(size)] = min(size, written)
        return total + sum(outputs)

    def _used(self, computation: str, name: str) -> tuple[int, int]:
        """Bytes of a value that its computation reads, and that it updates in place."""
        shapes = self.shapes[computation]
        read = written = 0
        for user in self.computations[computation]:
            if name not in user.operands:
                continue
            if user.opcode in _SLICES:
                read += _bytes(user.shape, everywhere=True)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                written += _bytes(shapes[user.operands[1]], everywhere=True)
            elif user.opcode in ("bitcast", "fusion"):
                inside, value = computation, user.name
                if user.called:
                    inside, place = user.called, (str(user.operands.index(name)),)
                    body = self.computations[inside]
                    value = next(one.name for one in body if one.opcode == "parameter" and one.operands == place)
                further = self._used(inside, value)
                read, written = read + further[0], written + further[1]
            else:
                read += _bytes(shapes[name], everywhere=True)
        return read, written


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")  # a tuple's shape has spaces
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:end], rest[end + 1 :]
    operands = re.findall(r"%([\w.-]+)", inside) or ([inside] if opcode in ("constant", "parameter") else [])
    return Instruction(match[2], shape, opcode.strip(), tuple(operands), attributes, bool(match[1]))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def _arrays(shape: str) -> Iterator[tuple[int, bool]]:
    """Bytes of each array of a shape, and whether it lies in the main memory."""
    for kind, sizes, layout in _SHAPE.findall(shape):
        yield (
            _SIZES.get(kind, 0) * math.prod(map(int, filter(None, sizes.split(",")))),
            not re.search(r"S\([1-9]", layout),
        )


def _bytes(shape: str, everywhere: bool = False) -> int:
    return sum(size for size, is_main in _arrays(shape) if is_main or everywhere)


def _received(kind: str, program: _Program, computation: str, instruction: Instruction, size: int) -> int:
    """Bytes that a device receives in a ring of ``size`` devices."""
    shapes = program.shapes[computation]
    given = sum(_bytes(shapes[name], everywhere=True) for name in instruction.operands if name in shapes)
    if kind == "collective-permute":
        return given
    others = (size - 1) / size
    if kind == "all-gather":
        return round(given * (size - 1))
    return round(given * others * (2 if kind == "all-reduce" else 1))


def _axes_and_size(attributes: str, mesh_shape: Mapping[str, int]) -> tuple[str, int]:
    """Names of the axes along which the devices of a group differ, and the number of devices in a group."""
    groups = _groups(attributes, math.prod(mesh_shape.values()))
    axes: set[str] = set()
    for group in groups:
        places = np.unravel_index(group, tuple(mesh_shape.values()))
        axes |= {name for name, place in zip(mesh_shape, places, strict=True) if len(set(place.tolist())) > 1}
    return "+".join(name for name in mesh_shape if name in axes), max(len(group) for group in groups)


def _groups(attributes: str, devices: int) -> Iterable[np.ndarray]:
    """The groups of devices of a collective, by their place in the mesh."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return [np.array(pair.split(","), int) for pair in re.findall(r"\{?([\d]+,[\d]+)", pairs[1])]
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]\S*)\))? \{(.*?)\}", attributes):
        return _mesh_groups(mesh[1], mesh[3], _iota(mesh[2]) if mesh[2] else np.arange(devices))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S+)", attributes):
        return list(_iota(iota[2]).reshape([int(n) for n in iota[1].split(",")]))
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return [np.array(group.split(","), int) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if "replica_groups={}" in attributes:
        return [np.arange(devices)]
    raise InputError(f"exchange with {attributes[:120]!r}: its groups of devices are not of a known form")


def _iota(text: str) -> np.ndarray:
    """Devices written as ``[2,4]T(1,0)``: 0, 1, ... in this shape, with its axes in this order."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match is not None
    shape = [int(n) for n in match[1].split(",")]
    order = np.arange(math.prod(shape)).reshape(shape)
    return order.transpose([int(n) for n in match[2].split(",")]).ravel() if match[2] else order.ravel()


def _mesh_groups(sizes: str, axes: str, devices: np.ndarray) -> list[np.ndarray]:
    """Groups written as ``mesh['a'=2,'b'=8] {'b'}``; a part of an axis is ``'b':(2)4``: of 8 = 2 · 4 · 1, the 4."""
    shape = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    split: list[int] = []
    chosen: list[int] = []
    for name, size in shape.items():
        parts = re.findall(rf"'{name}'(?::\((\d+)\)(\d+))?", axes)
        if not parts:
            split.append(size)
        elif not parts[0][0]:
            chosen.append(len(split))
            split.append(size)
        else:
            before, own = map(int, parts[0])
            chosen.append(len(split) + 1)
            split += [before, own, size // (before * own)]
    order = np.moveaxis(devices.reshape(split), chosen, range(-len(chosen), 0))
    return list(order.reshape(-1, math.prod(split[place] for place in chosen)))
