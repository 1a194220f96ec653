import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedq.plan import ops, optable
from tests.marks import more
from tests.plan.draw import aten
from tests.plan.fuzz import runs_here
from tools import judge_ops, make_ops

ROOT = Path(__file__).parents[2]

SCHEMAS = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("aten::")]


def name_of(schema):
    return schema.name.replace("::", ".") + (f".{schema.overload_name}" if schema.overload_name else "")


def test_every_overload_of_torch_is_in_the_table_or_refused_with_a_reason():
    assert len(SCHEMAS) > 3000
    for schema in SCHEMAS:
        name = name_of(schema)
        assert optable.find(name) or optable.why_not(name), name


def test_the_table_names_no_op_that_torch_lacks():
    assert set(ops.OPS) <= {name_of(s) for s in SCHEMAS}


def test_no_allowed_op_writes_to_its_arguments():
    allowed = [s for s in SCHEMAS if optable.find(name_of(s))]
    assert not [str(s) for s in allowed if "!" in str(s)]


@pytest.mark.parametrize(
    "name",
    ["aten.empty.memory_format", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.resize_",
     "aten.set_.source_Storage", "aten.as_strided", "aten.as_strided_scatter", "aten.from_file", "aten.add_.Tensor",
     "aten.add.out", "aten.record_stream", "aten._embedding_bag", "aten._ctc_loss", "aten.rand.generator",
     "aten.mkldnn_rnn_layer", "aten.lstm.data", "aten.native_batch_norm", "aten._reshape_alias", "prims.add", "c10d.x",
     "aten", "", "aten.", "aten.abs.default", "aten.abs.default.x", "sym.exec", "aten.__class__", "aten.abs.__call__"],
)  # fmt: skip
def test_a_dangerous_op_is_not_in_the_table(name):
    assert optable.find(name) is None
    assert optable.why_not(name)


def test_no_argument_of_an_allowed_op_holds_what_a_plan_can_not():
    kinds = {p.kind.rstrip("?") for name in optable.names() for p in optable.find(name).params}
    assert kinds == {
        "Tensor", "Tensor[]", "Tensor?[]", "Scalar", "Scalar[]", "real", "int", "int[]", "float", "float[]", "bool",
        "bool[]", "str", "dtype", "format", "none",
    }  # fmt: skip


def test_params_tell_names_kinds_defaults_and_what_goes_by_name_only():
    dim, dtype = optable.find("aten.sum.dim_IntList").params[1:4:2]
    assert (dim.name, dim.kind, dim.default, dim.keyword) == ("dim", "int[]?", None, False)
    assert (dtype.name, dtype.kind, dtype.default, dtype.keyword) == ("dtype", "dtype?", "None", True)


def test_ops_that_draw_are_marked_random():
    drawing = ("aten.rand", "aten.randn", "aten.randperm", "aten.dropout", "aten.bernoulli", "aten.multinomial",
               "aten.normal.float_float", "aten.native_dropout", "aten.scaled_dot_product_attention", "aten.lstm.input",
               "aten.rand_like", "aten.randint.low", "aten.poisson", "aten.alpha_dropout",
               "aten.feature_dropout")  # fmt: skip
    assert all(optable.find(name).random for name in drawing)
    assert not optable.find("aten.add.Tensor").random


def test_ops_whose_result_has_a_size_that_depends_on_data_are_marked():
    flagged = {name for name in optable.names() if optable.find(name).data_size}
    torchs = {n for n in ops.OPS if torch.Tag.dynamic_output_shape in overload(n).tags}
    assert torchs <= flagged
    assert flagged - torchs == {
        "aten.index.Tensor_hacked_twin", "aten._unsafe_index.Tensor", "aten._unsafe_index.Tensor_hacked_twin",
        "aten.nonzero_numpy", "aten.repeat_interleave.self_Tensor",
    }  # fmt: skip
    assert {"aten.nonzero", "aten.masked_select", "aten.index.Tensor", "aten._unique2"} <= torchs


def overload(name):
    _, base, *rest = name.split(".")
    return getattr(getattr(torch.ops.aten, base), rest[0] if rest else "default")


def test_the_table_is_what_its_script_writes():
    done = subprocess.run([sys.executable, "tools/make_ops.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def doctored(tmp_path):
    """The table as it might be for another torch: one op is new since, one gone, one changed."""
    text = (ROOT / "fedq/plan/ops.py").read_text()
    text = re.sub(
        r'    "aten.abs": \(.*\n', '    "aten.vanished": ("Tensor self", "Tensor", "", "", ""),\n', text, count=1
    )
    text = re.sub(r'"aten.lerp.Scalar": "[0-9a-f]+"', '"aten.lerp.Scalar": "0123456789ab"', text)
    (tmp_path / "ops.py").write_text(text.replace(f'TORCH = "{ops.TORCH}"', 'TORCH = "2.12.0"'))
    return tmp_path / "ops.py"


def test_what_is_new_gone_or_changed_in_the_installed_torch_is_listed(doctored):
    changes = judge_ops.compare(doctored, make_ops.table())
    assert (changes.new, changes.gone, changes.changed) == (("aten.abs",), ("aten.vanished",), ("aten.lerp.Scalar",))
    assert (changes.was, changes.is_) == ("2.12.0", torch.__version__.partition("+")[0])


def judge(table, *words):
    command = [sys.executable, "-m", "tools.judge_ops", "--table", str(table), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@more
def test_make_ops_fuzzes_what_changed_and_stamps_the_version(doctored):
    done = judge(doctored, "--calls", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"1 new:", "  aten.abs", "1 gone:", "  aten.vanished", "1 changed:"} <= set(done.stdout.splitlines())
    assert "2 ops fuzzed" in done.stdout
    assert doctored.read_text() == (ROOT / "fedq/plan/ops.py").read_text()
    assert "the table is what this torch gives" in judge(doctored).stdout


@more
def test_make_ops_stamps_nothing_where_a_new_op_kills_its_process(tmp_path):
    code = (
        "import sys, os, signal; from tools import judge_ops; from tests.plan import fuzz;"
        "fuzz.kernel = lambda op: lambda *a, **k: os.kill(os.getpid(), signal.SIGSEGV);"
        "sys.argv[1:] = ['--table', 'ops.py', '--calls', '3']; judge_ops.main()"
    )
    text = (ROOT / "fedq/plan/ops.py").read_text()
    text = re.sub(r'    "aten.abs": \(.*\n', "", text, count=1)
    (tmp_path / "ops.py").write_text(text)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.returncode == 1 and "aten.abs: a call ended the process with SIGSEGV" in done.stdout
    assert "stays as it is" in done.stdout and (tmp_path / "ops.py").read_text() == text


def test_five_ops_have_no_code_for_a_cpu_so_they_fail_before_they_look_at_anything():
    without = [op.name.removeprefix("aten.") for op in aten() if not runs_here(op.name)]
    assert without == ["addmm.dtype", "baddbmm.dtype", "bmm.dtype", "linear_backward", "mm.dtype"]


def test_the_table_loads_without_torch():
    code = (
        "import sys; import fedq.plan.optable as o; assert o.find('aten.add.Tensor');"
        "assert not any(m.startswith('torch') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
