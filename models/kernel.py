"""The loop that scores: a forest's trees, 64 rows at a time, as machine code of the processor it runs on.

For each inner node of a tree one comparison tells which of the 64 rows would go left, as the bits of one integer. Ands
of these, from the root down, tell which rows reach each leaf. There is nothing to mispredict and nothing to chase,
which is what a walk down a tree takes its time for. Rows are independent of each other and trees are added in their
order: a row's score does not depend on the rows beside it.

It is written in LLVM's language, where a comparison of 64 numbers and its bits are one value each, and compiled when
the process first needs it (some 40 ms): for whatever vectors the processor has, and with nothing executable on disk.
https://llvm.org/docs/LangRef.html

A relative, with a bit for each leaf: Lucchese et al., "QuickScorer", SIGIR 2015.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from functools import cache
from typing import Any

LANES = 64
"""Rows of a block."""
MAX_LEAVES = 256
"""A leaf's number is a byte."""

_IR = """
%node = type { float, i16, i16, i16, i16 }  ; threshold, column, left and right slot, -1 where NaN goes left or else 0
%tree = type { i32, i32, i32 }              ; first node, nodes, first leaf

; rows x width floats at %x -> groups x rows sums at %sums. A tree's slots are its nodes, then its leaves; a child's
; slot is above its parent's. %ends has the tree after each group's last. %columns and %nans are room for %used_count
; columns.
define void @sum_trees(ptr noalias %x, i64 %rows, i64 %width, ptr noalias %used, i64 %used_count, ptr noalias %nodes,
                       ptr noalias %leaves, ptr noalias %trees, ptr noalias %ends, i64 %groups, ptr noalias %sums,
                       ptr noalias %columns, ptr noalias %nans) #0 {
entry:
  %slots = alloca [512 x i64], align 64
  %leaf_of = alloca [64 x i8], align 64
  %sum = alloca [64 x double], align 64
  %last_row = sub i64 %rows, 1
  br label %block

block:                                      ; of 64 rows
  %row = phi i64 [ 0, %entry ], [ %row.next, %block.end ]
  br label %column

column:                                     ; the columns in use, each beside itself; past the end, the last row again
  %c = phi i64 [ 0, %block ], [ %c.next, %column.end ]
  %used.at = getelementptr i32, ptr %used, i64 %c
  %used.32 = load i32, ptr %used.at
  %used.64 = zext i32 %used.32 to i64
  %from = getelementptr float, ptr %x, i64 %used.64
  %to = getelementptr <64 x float>, ptr %columns, i64 %c
  br label %cell
cell:
  %lane = phi i64 [ 0, %column ], [ %lane.next, %cell ]
  %cell.row = add i64 %row, %lane
  %cell.is = icmp ult i64 %cell.row, %last_row
  %cell.in = select i1 %cell.is, i64 %cell.row, i64 %last_row
  %cell.offset = mul i64 %cell.in, %width
  %cell.from = getelementptr float, ptr %from, i64 %cell.offset
  %cell.value = load float, ptr %cell.from
  %cell.to = getelementptr float, ptr %to, i64 %lane
  store float %cell.value, ptr %cell.to
  %lane.next = add i64 %lane, 1
  %lane.done = icmp eq i64 %lane.next, 64
  br i1 %lane.done, label %column.end, label %cell
column.end:
  %column.values = load <64 x float>, ptr %to, align 64
  %column.nan = fcmp uno <64 x float> %column.values, zeroinitializer
  %column.nans = bitcast <64 x i1> %column.nan to i64
  %nans.at = getelementptr i64, ptr %nans, i64 %c
  store i64 %column.nans, ptr %nans.at
  %c.next = add i64 %c, 1
  %c.done = icmp eq i64 %c.next, %used_count
  br i1 %c.done, label %group, label %column

group:                                      ; of trees that are summed
  %g = phi i64 [ 0, %column.end ], [ %g.next, %group.end ]
  %t.first = phi i64 [ 0, %column.end ], [ %t.end, %group.end ]
  %end.at = getelementptr i64, ptr %ends, i64 %g
  %t.end = load i64, ptr %end.at
  call void @llvm.memset.p0.i64(ptr align 64 %sum, i8 0, i64 512, i1 false)
  br label %tree.or.end
tree.or.end:
  %t = phi i64 [ %t.first, %group ], [ %t.next, %tree.end ]
  %t.done = icmp uge i64 %t, %t.end
  br i1 %t.done, label %group.end, label %tree

tree:
  %tree.at = getelementptr %tree, ptr %trees, i64 %t
  %first.32 = load i32, ptr %tree.at
  %first = zext i32 %first.32 to i64
  %count.at = getelementptr %tree, ptr %tree.at, i64 0, i32 1
  %count.32 = load i32, ptr %count.at
  %count = zext i32 %count.32 to i64
  %leaf.at = getelementptr %tree, ptr %tree.at, i64 0, i32 2
  %leaf.32 = load i32, ptr %leaf.at
  %leaf.64 = zext i32 %leaf.32 to i64
  %tree.nodes = getelementptr %node, ptr %nodes, i64 %first
  %tree.leaves = getelementptr double, ptr %leaves, i64 %leaf.64
  store i64 -1, ptr %slots
  %constant = icmp eq i64 %count, 0
  br i1 %constant, label %leaf.first, label %node

node:                                       ; the rows that reached it are divided among its children
  %n = phi i64 [ 0, %tree ], [ %n.next, %node ]
  %node.at = getelementptr %node, ptr %tree.nodes, i64 %n
  %threshold = load float, ptr %node.at
  %node.column.at = getelementptr %node, ptr %node.at, i64 0, i32 1
  %node.column.16 = load i16, ptr %node.column.at
  %node.column = zext i16 %node.column.16 to i64
  %left.at = getelementptr %node, ptr %node.at, i64 0, i32 2
  %left.16 = load i16, ptr %left.at
  %left = zext i16 %left.16 to i64
  %right.at = getelementptr %node, ptr %node.at, i64 0, i32 3
  %right.16 = load i16, ptr %right.at
  %right = zext i16 %right.16 to i64
  %nan.left.at = getelementptr %node, ptr %node.at, i64 0, i32 4
  %nan.left.16 = load i16, ptr %nan.left.at
  %nan.left = sext i16 %nan.left.16 to i64
  %values.at = getelementptr <64 x float>, ptr %columns, i64 %node.column
  %values = load <64 x float>, ptr %values.at, align 64
  %one = insertelement <64 x float> poison, float %threshold, i32 0
  %all = shufflevector <64 x float> %one, <64 x float> poison, <64 x i32> zeroinitializer
  %below = fcmp ole <64 x float> %values, %all
  %go.below = bitcast <64 x i1> %below to i64
  %node.nans.at = getelementptr i64, ptr %nans, i64 %node.column
  %node.nans = load i64, ptr %node.nans.at
  %go.nan = and i64 %node.nans, %nan.left
  %go.left = or i64 %go.below, %go.nan
  %here.at = getelementptr i64, ptr %slots, i64 %n
  %here = load i64, ptr %here.at
  %here.left = and i64 %here, %go.left
  %here.right = xor i64 %here, %here.left
  %left.slot = getelementptr i64, ptr %slots, i64 %left
  store i64 %here.left, ptr %left.slot
  %right.slot = getelementptr i64, ptr %slots, i64 %right
  store i64 %here.right, ptr %right.slot
  %n.next = add i64 %n, 1
  %n.done = icmp eq i64 %n.next, %count
  br i1 %n.done, label %leaf.first, label %node

leaf.first:
  %leaf.slots = getelementptr i64, ptr %slots, i64 %count
  br label %leaf
leaf:                                       ; its number goes to the rows that reached it
  %l = phi i64 [ 0, %leaf.first ], [ %l.next, %leaf ]
  %numbers = phi <64 x i8> [ zeroinitializer, %leaf.first ], [ %numbers.next, %leaf ]
  %reached.at = getelementptr i64, ptr %leaf.slots, i64 %l
  %reached = load i64, ptr %reached.at
  %reached.by = bitcast i64 %reached to <64 x i1>
  %l.8 = trunc i64 %l to i8
  %l.one = insertelement <64 x i8> poison, i8 %l.8, i32 0
  %l.all = shufflevector <64 x i8> %l.one, <64 x i8> poison, <64 x i32> zeroinitializer
  %numbers.next = select <64 x i1> %reached.by, <64 x i8> %l.all, <64 x i8> %numbers
  %l.next = add i64 %l, 1
  %l.done = icmp ugt i64 %l.next, %count
  br i1 %l.done, label %add.first, label %leaf

add.first:
  store <64 x i8> %numbers.next, ptr %leaf_of, align 64
  br label %add
add:                                        ; the value of its leaf to each row's sum
  %a = phi i64 [ 0, %add.first ], [ %a.next, %add ]
  %number.at = getelementptr i8, ptr %leaf_of, i64 %a
  %number.8 = load i8, ptr %number.at
  %number = zext i8 %number.8 to i64
  %value.at = getelementptr double, ptr %tree.leaves, i64 %number
  %value = load double, ptr %value.at
  %sum.at = getelementptr double, ptr %sum, i64 %a
  %sum.before = load double, ptr %sum.at
  %sum.after = fadd double %sum.before, %value
  store double %sum.after, ptr %sum.at
  %a.next = add i64 %a, 1
  %a.done = icmp eq i64 %a.next, 64
  br i1 %a.done, label %tree.end, label %add
tree.end:
  %t.next = add i64 %t, 1
  br label %tree.or.end

group.end:
  %group.sums = mul i64 %g, %rows
  %block.sums = add i64 %group.sums, %row
  %sums.at = getelementptr double, ptr %sums, i64 %block.sums
  %rows.left = sub i64 %rows, %row
  %rows.few = icmp ult i64 %rows.left, 64
  %rows.here = select i1 %rows.few, i64 %rows.left, i64 64
  %sums.bytes = shl i64 %rows.here, 3
  call void @llvm.memcpy.p0.p0.i64(ptr %sums.at, ptr %sum, i64 %sums.bytes, i1 false)
  %g.next = add i64 %g, 1
  %g.done = icmp eq i64 %g.next, %groups
  br i1 %g.done, label %block.end, label %group
block.end:
  %row.next = add i64 %row, 64
  %rows.done = icmp uge i64 %row.next, %rows
  br i1 %rows.done, label %exit, label %block
exit:
  ret void
}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
attributes #0 = { nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512" }
"""

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURE = ctypes.CFUNCTYPE(
    None,
    *(_POINTER, _COUNT, _COUNT),  # x, rows, width
    *(_POINTER, _COUNT),  # used, used_count
    *(_POINTER, _POINTER, _POINTER),  # nodes, leaves, trees
    *(_POINTER, _COUNT, _POINTER),  # ends, groups, sums
    *(_POINTER, _POINTER),  # columns, nans
)

_compiling = threading.Lock()


def available() -> bool:
    """True when llvmlite, which compiles the kernel, is installed."""
    return importlib.util.find_spec("llvmlite") is not None


def sum_trees() -> Any:
    """The kernel as a function of C, which runs without Python's lock.

    It reads and writes where it is told to: only ``Forest`` calls it, with what it has checked.
    """
    with _compiling:
        return _compiled()[0]


@cache
def _compiled() -> tuple[Any, Any]:
    """The function, and the engine that owns its machine code."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_IR), machine)
    engine.finalize_object()
    return _SIGNATURE(engine.get_function_address("sum_trees")), engine
