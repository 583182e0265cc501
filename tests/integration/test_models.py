"""Train on feature tables, publish, rank, evaluate: the real AutoGluon on small synthetic tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorien.errors import (
    BadInput,
    ChecksumMismatch,
    SchemaMismatch,
    UnknownTarget,
    UnsupportedOperation,
)
from lorien.featurize.dataset import Contents
from lorien.featurize.schema import Column, FeatureSet
from lorien.models import load_ranker
from lorien.models.data import group_tables, read_features, read_rows
from lorien.models.ensemble import fit_ensemble
from lorien.models.evaluate import evaluate
from lorien.models.grouped import encode
from lorien.models.lower import lower
from lorien.models.metrics import Candidates, ranking_scores
from lorien.models.predictor import Ranker
from lorien.models.presets import PRESETS, Preset
from lorien.models.rankers import Queries
from lorien.models.sampling import row_weights, sample_rows
from lorien.models.scorer import TreeEnsemble
from lorien.models.store import SCORER_FILE, open_models
from lorien.models.train import train
from lorien.models.training_data import network_folds
from lorien.models.transfer import best_share
from lorien.report.judge import judge
from lorien.target import Target

FEATURES = FeatureSet("toy", 1, tuple(Column(f"c{i}", "1", f"column {i}") for i in range(8)))
TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
SISTER = Target.parse("llvm -mcpu=skylake -num-cores=2")
NETWORKS = {"vgg": range(8), "resnet": range(6, 14), "mobilenet": range(14, 22)}
"""Workload numbers of each network; two are shared."""


def write_table(path: Path, network: str | None, workloads, target=TARGET, features=FEATURES, rows=40, seed=0) -> Path:
    """Latencies that follow from the features in the same way for every workload, times the workload's own scale."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {name: [] for name in ("workload_key", "network", "latency_s", "candidate", "error")}
    blocks = []
    for number in workloads:
        matrix = rng.normal(size=(rows, len(features.names))).astype(np.float32)
        matrix[:, 7] = number
        matrix[rng.random(rows) < 0.2, 3] = np.nan
        latency = 1e-3 * (number + 1) * np.exp(0.5 * np.abs(matrix[:, 0]) + 0.3 * np.maximum(matrix[:, 1], 0))
        failed = matrix[:, 2] > 1.2
        columns["workload_key"] += [f"w{number:03}"] * rows
        columns["network"] += [network] * rows
        columns["latency_s"] += np.where(failed, None, latency).tolist()
        columns["error"] += np.where(failed, "run_error", None).tolist()
        columns["candidate"] += [f"{number}-{i}" for i in range(rows)]
        blocks.append(matrix)
    count = len(columns["workload_key"])
    columns |= {"workload": columns["workload_key"], "weight": [2.0] * count, "flop": [None] * count}
    columns |= {"build": ["toy 1"] * count}
    schema = features.arrow_schema("toy", target.key, {"log": path.stem})
    matrix = np.concatenate(blocks)
    columns |= {name: matrix[:, i] for i, name in enumerate(features.names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), path)
    return path


def write_tables(root: Path, target=TARGET, features=FEATURES, rows=40) -> Path:
    folder = root / "dialect=toy" / f"target={target.key}"
    for seed, (network, workloads) in enumerate(NETWORKS.items()):
        write_table(folder / f"{network}.parquet", network, workloads, target, features, rows, seed)
    return root


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_tables(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def trained(features, tmp_path_factory):
    """A store with a model that never saw vgg, and the report of its training."""
    out = tmp_path_factory.mktemp("models")
    (report,) = train(features, out, holdout_network="vgg", time_limit_s=60).values()
    return out, report


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A store that a test may damage."""
    return Path(shutil.copytree(trained[0], tmp_path / "models"))


def model_files(root: Path) -> tuple[Path, Path]:
    (about,) = root.glob("*/*/model.json")
    (scorer,) = root.glob(f"*/*/*/{SCORER_FILE}")
    return about, scorer


def test_a_held_out_network_is_ranked_well_and_shares_no_workload_with_training(trained, features):
    out, report = trained
    stored = open_models(out).read("toy", TARGET.key)
    assert not {f"w{number:03}" for number in NETWORKS["vgg"]} & set(stored.model.workload_keys)
    assert report.workloads == len(stored.model.workload_keys) == 14
    # Workload 6 and 7 are in two networks: out of training in both.
    assert report.rows == 14 * 40
    assert report.holdout["held_out"] == "vgg"
    assert report.holdout["workloads"] == 8
    assert report.holdout["top1_mean"] > report.holdout["random_top1_mean"] + 0.15
    assert report.holdout["top5_mean"] > 0.9
    assert stored.model.networks == ["mobilenet", "resnet"]
    # What evaluate finds is what the training reported.
    (found,) = evaluate(features, out, holdout_network="vgg").values()
    assert found["dropped_workloads"] == 0
    for name in ("top1_mean", "top5_weighted", "spearman_mean", "workloads", "records"):
        assert found[name] == pytest.approx(report.holdout[name])


def test_workloads_the_model_was_trained_on_are_never_scored(trained, features):
    out, _ = trained
    (found,) = evaluate(features, out).values()
    assert (found["workloads"], found["dropped_workloads"]) == (8, 14)
    with pytest.raises(BadInput, match="lorien-train FEATURES -o MODELS --holdout-network mobilenet"):
        evaluate(features, out, holdout_network="mobilenet")
    with pytest.raises(BadInput, match="no rows of network 'alexnet'"):
        evaluate(features, out, holdout_network="alexnet")


def test_scores_are_fractions_in_the_order_given_and_zero_for_what_cannot_be_lowered(trained, features):
    ranker = load_ranker(trained[0], TARGET)
    assert ranker.exact
    (group,) = group_tables(features)
    matrix = read_features(group, read_rows(group).all())
    scores = ranker.score(matrix)
    assert scores.shape == (len(matrix),)
    assert ((scores >= 0) & (scores <= 1)).all()
    order = np.random.default_rng(0).permutation(len(matrix))
    np.testing.assert_array_equal(ranker.score(matrix[order]), scores[order])
    np.testing.assert_array_equal(np.concatenate([ranker.score_table(path) for path in group.paths]), scores)
    assert ranker.score(np.full((2, 8), np.nan, dtype=np.float32)).tolist() == [0.0, 0.0]
    assert ranker.score(matrix[:0]).shape == (0,)
    # Where the folds disagree, the guide of a search is below the score; it is never above by more than rounding.
    assert (ranker.guide(matrix) <= scores + 1e-9).all()
    assert (ranker.guide(matrix) < scores - 1e-9).any()
    with pytest.raises(BadInput, match="columns"):
        ranker.score(matrix[:, :5])


def test_the_score_is_the_expected_fraction_on_unseen_workloads(trained, features):
    ranker = load_ranker(trained[0], TARGET)
    (group,) = group_tables(features)
    rows = read_rows(group)
    test = np.array([name == "vgg" for name in rows.network_names()])
    value = rows.candidates(test).value()
    scores = np.concatenate([ranker.score_table(path) for path in group.paths])[test]
    assert scores.mean() == pytest.approx(value.mean(), abs=0.06)
    top = scores > np.quantile(scores, 0.8)
    assert scores[top].mean() == pytest.approx(value[top].mean(), abs=0.12)


def test_the_published_autogluon_predictor_ranks_alike(trained, features):
    pytest.importorskip("autogluon.tabular")
    import pandas as pd
    from autogluon.tabular import TabularPredictor

    _, scorer = model_files(trained[0])
    ranker = load_ranker(trained[0], TARGET)
    (group,) = group_tables(features)
    matrix = read_features(group, read_rows(group).all())
    theirs = TabularPredictor.load(str(scorer.parent / "autogluon"), verbosity=0)
    expected = theirs.predict(pd.DataFrame(matrix, columns=[f"f{i}" for i in range(8)]))
    raw = ranker._scorer.trees(matrix)
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    np.testing.assert_array_equal(np.argsort(raw, kind="stable"), np.argsort(ranker.score(matrix), kind="stable"))


def test_a_fold_is_scored_by_the_boosters_that_never_saw_it(tmp_path):
    """Against AutoGluon's own out-of-fold predictions, with boosters of several families."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 6)).astype(np.float32)
    label = np.abs(matrix[:, 0]) + 0.3 * rng.random(400)
    fold = rng.integers(0, 3, 400)
    workload = fold * 10 + rng.integers(0, 10, 400)
    few = {
        "GBM": {"num_boost_round": 60},
        "XGB": {"n_estimators": 15},
        "CAT": {"iterations": 40},
        "GBM_RANK": {"objective": "lambdarank", "trees": 60, "num_leaves": 8, "min_data_in_leaf": 5},
    }
    preset = Preset(folds=3, max_rows=1000, time_limit_s=60, hyperparameters={k: [v] for k, v in few.items()})
    ensemble = fit_ensemble(
        *(matrix, label / label.max(), workload, np.ones(400), fold),
        preset=preset,
        time_limit_s=60,
        folder=tmp_path / "fit",
    )
    assert len(ensemble.members) > 1
    expected = ensemble.predictor._trainer.get_model_oof(ensemble.predictor.model_best)
    unseen = np.empty(400)
    for index in range(3):
        unseen[fold == index] = TreeEnsemble(ensemble.lowered(index))(matrix[fold == index])
    np.testing.assert_allclose(unseen, expected, atol=1e-5)
    np.testing.assert_allclose(TreeEnsemble(ensemble.lowered())(matrix), ensemble.predict(matrix), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_of_a_preset_lowers_exactly_where_features_are_zero_or_missing(name, tmp_path):
    """AutoGluon hands XGBoost a sparse matrix unless told otherwise, in which a zero is a missing value."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(600, 8)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.3] = 0
    matrix[:, 1][rng.random(600) < 0.2] = np.nan
    workload = np.repeat(np.arange(30), 20)
    value = 0.05 + 0.6 / (1 + np.exp(-matrix[:, 0])) + 0.3 * rng.random(600)
    counts = ("num_boost_round", "trees", "n_estimators", "iterations")
    few = {
        family: [model | {count: 10 for count in counts if count in model} for model in models]
        for family, models in PRESETS[name].hyperparameters.items()
    }
    ensemble = fit_ensemble(
        *(matrix, value, workload, np.ones(600), workload % 2),
        preset=Preset(2, 1000, 120, few),
        time_limit_s=120,
        folder=tmp_path / "fit",
    )
    assert len(ensemble.members) == sum(map(len, few.values()))
    # Where time is short the last are left out: they are fitted in the preset's order.
    fitted = [name.split("_")[1] for name in ensemble.predictor._trainer.get_model_names(level=1)]
    assert fitted == [model["ag_args"]["name_suffix"][1:] for models in few.values() for model in models]
    np.testing.assert_allclose(TreeEnsemble(ensemble.lowered())(matrix), ensemble.predict(matrix), atol=1e-6)


def test_models_that_could_not_be_fitted_are_counted_for_each_purpose(features, tmp_path, caplog, monkeypatch):
    models = [{"num_boost_round": 5}, {"num_boost_round": 5, "objective": "no such objective"}]
    monkeypatch.setitem(PRESETS, "fast", Preset(2, 1000, 60, {"GBM": models}))
    train(features, tmp_path)
    assert caplog.text.count("of the preset's 2 models") == 1
    assert "only these could be fitted: 1 for the scores, 1 for their confidence. Fix" in caplog.text


def test_a_query_is_of_one_workload_and_no_longer_than_asked():
    rng = np.random.default_rng(0)
    workload = rng.permutation(np.repeat([0, 1, 2], [700, 256, 3]))
    number = np.arange(len(workload), dtype=np.float32)
    queries = Queries.of(pd.DataFrame({"f0": number}), encode(rng.random(len(workload)), workload), None, 256)
    assert sorted(queries.sizes) == [3, 233, 233, 234, 256]
    assert sorted(queries.features[:, 0]) == list(number)
    np.testing.assert_array_equal(queries.workload, workload[queries.features[:, 0].astype(int)])
    assert all(len(set(part)) == 1 for part in np.split(queries.workload, np.cumsum(queries.sizes)[:-1]))
    # A part is no stage of the tuning.
    assert (np.diff(queries.features[:700, 0]) < 0).mean() > 0.4


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("GBM_RANK", {"objective": "rank_xendcg", "num_leaves": 8, "min_data_in_leaf": 5}),
        ("XGB_RANK", {"objective": "rank:ndcg", "max_depth": 4}),
        ("CAT_RANK", {"loss_function": "YetiRank", "depth": 4}),
    ],
)
def test_models_of_ranking_rank_what_they_have_not_seen_and_lower_exactly(family, settings, tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(600, 6)).astype(np.float32)
    # Values say nothing across workloads: only their order within each follows from the features.
    workload = np.repeat(np.arange(30), 20)
    value = 0.05 + 0.6 / (1 + np.exp(-matrix[:, 0])) + 0.3 * rng.random(30)[workload]
    fold = workload % 3
    preset = Preset(3, 1000, 60, {family: [{"trees": 30, **settings}]})
    ensemble = fit_ensemble(
        matrix, value, workload, np.ones(600), fold, preset=preset, time_limit_s=60, folder=tmp_path / "fit"
    )
    unseen = np.empty(600)
    for index in range(3):
        unseen[fold == index] = TreeEnsemble(ensemble.lowered(index))(matrix[fold == index])
    np.testing.assert_allclose(
        unseen, ensemble.predictor._trainer.get_model_oof(ensemble.predictor.model_best), atol=1e-5
    )
    np.testing.assert_allclose(TreeEnsemble(ensemble.lowered())(matrix), ensemble.predict(matrix), atol=1e-5)
    # Not the rank correlation: training stops once the first ten are right, however the others lie (.89 for xendcg).
    scores = ranking_scores(Candidates(workload, 1 / value, np.ones(30)), unseen)
    assert scores["random_top1_mean"] < 0.7
    assert scores["top1_mean"] > 0.95
    assert scores["min_top10"] > 0.99
    # On the scale of the values, so that members of an ensemble can be added.
    assert unseen.mean() == pytest.approx(value.mean(), abs=0.05)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store with a model of the sister target that never saw vgg."""
    root = tmp_path_factory.mktemp("base")
    tables = write_tables(root / "features", target=SISTER)
    train(tables, root / "models", holdout_network="vgg", time_limit_s=60)
    return root / "models"


def test_a_target_with_few_logs_starts_from_its_sister(base, tmp_path):
    tables = write_tables(tmp_path / "features", rows=4)
    (own,) = train(tables, tmp_path / "own", holdout_network="vgg", time_limit_s=60).values()
    (blended,) = train(tables, tmp_path / "blended", holdout_network="vgg", base=base, time_limit_s=60).values()
    assert blended.holdout["base"] == SISTER.key
    assert blended.holdout["base_share"] > 0
    assert blended.holdout["spearman_mean"] > own.holdout["spearman_mean"]
    # What the base saw counts as seen, and what is served is what was scored.
    (found,) = evaluate(tables, tmp_path / "blended", holdout_network="vgg").values()
    assert found["spearman_mean"] == pytest.approx(blended.holdout["spearman_mean"])
    ranker = load_ranker(tmp_path / "blended", TARGET)
    matrix = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert (ranker.guide(matrix) <= ranker.score(matrix) + 1e-9).all()
    with pytest.raises(BadInput, match="itself a blend"):
        train(tables, tmp_path / "models", base=tmp_path / "blended", time_limit_s=60)


def test_a_base_that_knows_what_is_held_out_or_reads_other_features_is_refused(base, features, tmp_path):
    with pytest.raises(BadInput, match="to be held out"):
        train(features, tmp_path / "models", holdout_network="mobilenet", base=base, time_limit_s=60)
    newer = write_tables(tmp_path / "newer", features=FeatureSet("toy", 2, FEATURES.columns))
    with pytest.raises(BadInput, match="toy/1"):
        train(newer, tmp_path / "models", base=base, time_limit_s=60)
    with pytest.raises(BadInput, match="train without --base"):
        train(features, tmp_path / "models", base=tmp_path / "nothing", time_limit_s=60)


def test_a_base_that_ranks_the_other_way_round_gets_no_share(features):
    (group,) = group_tables(features)
    rows = read_rows(group)
    value = rows.candidates(rows.all()).value()
    assert best_share(value, -value, rows.workload, value) == 0.0
    # Three quarters of what is right outweigh a quarter of what is wrong: there is no need for more.
    assert best_share(-value, value, rows.workload, value) == 0.75


def test_it_takes_clear_evidence_to_leave_the_base():
    rng = np.random.default_rng(0)
    workload = np.repeat(np.arange(5), 20)
    value = rng.random(100) ** 3
    base = value + rng.normal(scale=0.5, size=100)
    assert best_share(value, base, workload, value) == 0.0
    own = value + rng.normal(scale=0.45, size=100)
    assert best_share(own, base, workload, value) >= 0.5
    # One workload is no evidence, whatever it says.
    assert best_share(value[:20], base[:20], workload[:20], value[:20]) == 1.0


def test_a_model_of_before_confidence_says_to_train_again(copy):
    stored = open_models(copy).read("toy", TARGET.key)
    older = dataclasses.replace(stored, model=dataclasses.replace(stored.model, confidence={}))
    with pytest.raises(SchemaMismatch, match="lorien-train again"):
        _ = Ranker(older, TARGET).confidence


def test_training_is_reproducible_prints_nothing_and_leaves_nothing_behind(trained, features, tmp_path):
    """Also where two train the same at the same time: one model stays, whole."""
    script = (
        "import sys; from pathlib import Path; from lorien.models.train import train\n"
        "train(Path(sys.argv[1]), sys.argv[2], holdout_network='vgg', time_limit_s=60)"
    )
    work = tmp_path / "cwd"
    work.mkdir()
    command = [sys.executable, "-c", script, str(features), str(tmp_path / "models")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=work, **pipes) as one, subprocess.Popen(command, cwd=work, **pipes) as two:
        assert [(*run.communicate(timeout=300), run.returncode) for run in (one, two)] == [("", "", 0)] * 2
    assert list(work.iterdir()) == []
    about, scorer = model_files(tmp_path / "models")
    assert scorer.read_bytes() == model_files(trained[0])[1].read_bytes()
    stored = open_models(tmp_path / "models").read("toy", TARGET.key)
    assert all(stored.read(name) for name in stored.files)
    assert [path.name for path in about.parent.iterdir() if path.is_dir()] == [scorer.parent.name]


def test_ranking_imports_neither_autogluon_nor_pandas_nor_pickles(trained):
    script = (
        "import sys; from lorien.models import load_ranker; import numpy as np\n"
        "load_ranker(sys.argv[1], sys.argv[2]).score(np.zeros((3, 8), dtype=np.float32))\n"
        "bad = {'autogluon', 'pandas', 'sklearn', 'scipy', 'lightgbm', 'tvm'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script, str(trained[0]), TARGET.key], check=True, timeout=60)


def test_a_second_training_with_reuse_keeps_the_model_until_a_table_changes(trained, features, copy, tmp_path):
    about, _ = model_files(copy)
    written = about.read_bytes()
    calls = []

    def again(tables):
        options = {"holdout_network": "vgg", "time_limit_s": 60, "reuse": True}
        (report,) = train(tables, copy, **options, progress=lambda *call: calls.append(call)).values()
        return report

    assert again(features) == dataclasses.replace(trained[1], path=str(about.parent))
    assert about.read_bytes() == written
    assert calls == [(0, 1, TARGET.key), (1, 1, "")]
    more = Path(shutil.copytree(features, tmp_path / "features"))
    write_table(more / "dialect=toy" / f"target={TARGET.key}" / "more.parquet", None, range(30, 33))
    assert again(more).workloads == trained[1].workloads + 3
    # The old model's files went with it.
    assert len([path for path in about.parent.iterdir() if path.is_dir()]) == 1


def test_tables_that_are_missing_are_told_of(features, copy, tmp_path, caplog):
    """Of a log that has no table at all, and of shards; in the answers, and as warnings."""
    partial = Path(shutil.copytree(features, tmp_path / "features"))
    contents = Contents("logs", {f"toy/{TARGET.key}/net-0123456789ab": 2, "toy/cuda/net-0123456789ab": 1})
    (partial / contents.name("toy")).write_bytes(contents.to_bytes())
    said = f"{partial} lacks tables of log toy/{TARGET.key}/net-0123456789ab: shards 0/2, 1/2 are missing"
    (report,) = train(partial, copy, holdout_network="vgg", time_limit_s=60, reuse=True).values()
    (scores,) = evaluate(partial, copy).values()
    for (missing,) in (report.missing, report.to_json()["missing"], scores["missing"]):
        assert missing.startswith(said)
        assert missing.endswith(f"Fix: lorien featurize logs -o {partial}")
    warned = [record.getMessage() for record in caplog.records if "lacks tables" in record.getMessage()]
    assert len(warned) == 4
    assert sum("toy/cuda/net-0123456789ab: shards 0/1 are missing" in text for text in warned) == 2


@pytest.mark.parametrize("family", ["lightgbm", "xgboost", "catboost"])
@pytest.mark.parametrize("missing", [True, False], ids=["nan seen", "nan new"])
def test_lowered_trees_say_what_their_booster_says(family, missing):
    rng = np.random.default_rng(0)
    train_on, asked = rng.normal(size=(2, 800, 6)).astype(np.float32)
    # Equal values sit right on the cuts; infinities, zeros and NaN are what extractors produce at the edges.
    train_on[:, 1], asked[:, 1] = train_on[:, 1].round(), asked[:, 1].round()
    train_on[:, 2] = 3.0
    label = np.abs(train_on[:, 0]) + train_on[:, 1] * train_on[:, 3]
    asked[rng.random(asked.shape) < 0.2] = np.nan
    asked[:4] = np.array([0, np.inf, -np.inf, np.nan], dtype=np.float32)[:, None]
    if missing:
        train_on[rng.random(train_on.shape) < 0.2] = np.nan
    booster = fit_booster(family, train_on, label)
    trees = TreeEnsemble(lower([(0.25, booster), (0.75, booster)], 6))
    for matrix in (train_on, asked):
        np.testing.assert_allclose(trees(matrix), booster.predict(matrix), atol=1e-5)


def fit_booster(family, matrix, label):
    pytest.importorskip(family)
    if family == "lightgbm":
        import lightgbm

        data = lightgbm.Dataset(matrix, label, feature_name=[f"f{i}" for i in range(6)])
        return lightgbm.train({"verbose": -1, "num_threads": 1}, data, 30)
    if family == "xgboost":
        import xgboost

        return xgboost.XGBRegressor(n_estimators=30, n_jobs=1).fit(matrix, label)
    import catboost

    settings = {"iterations": 30, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    return catboost.CatBoostRegressor(**settings).fit(matrix, label)


def test_what_is_no_model_is_refused():
    for text in (b"", b"\x00\xff" * 50, b"tree\nversion=v4\n"):
        with pytest.raises(SchemaMismatch, match="not a LightGBM model"):
            TreeEnsemble(text)


def test_another_target_of_the_family_answers_with_a_warning(trained, caplog):
    with caplog.at_level(logging.WARNING):
        ranker = load_ranker(trained[0], SISTER)
    assert not ranker.exact
    assert SISTER.key in caplog.text
    with pytest.raises(UnknownTarget, match=TARGET.key):
        load_ranker(trained[0], "cuda_rtx3080")


def test_an_empty_store_and_an_unknown_scheme_are_told_apart(tmp_path):
    with pytest.raises(UnknownTarget, match="trained: none"):
        load_ranker(tmp_path / "nowhere", TARGET)
    with pytest.raises(UnsupportedOperation, match="hdfs://"):
        load_ranker("hdfs://models", TARGET)
    with pytest.raises(UnknownTarget, match="trained: none"):
        load_ranker(f"file://{tmp_path}", TARGET)


def test_a_target_that_cannot_be_trained_does_not_cost_the_others_theirs(tmp_path, caplog):
    tables = write_tables(tmp_path / "features", rows=10)
    write_table(tables / "dialect=toy" / f"target={SISTER.key}" / "one.parquet", "vgg", [1], target=SISTER)
    reports = train(tables, tmp_path / "models", time_limit_s=60)
    assert list(reports) == [TARGET.key]
    assert SISTER.key in caplog.text
    assert reports[TARGET.key].holdout["held_out"] == "each network once, in 3 folds"


def test_a_reader_never_sees_half_of_a_model_that_is_being_replaced(copy, tmp_path):
    store = open_models(copy)
    stored = store.read("toy", TARGET.key)
    text = stored.read(SCORER_FILE)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SCORER_FILE).write_bytes(text + name.encode())
    stop = threading.Event()

    def publish():
        for index in itertools.cycle(("one", "two")):
            if stop.is_set():
                return
            store.publish(stored.model, tmp_path / index)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for _ in range(40):
            load_ranker(copy, TARGET)
    finally:
        stop.set()
        publisher.join()


def test_a_changed_file_is_refused(copy):
    _, scorer = model_files(copy)
    scorer.write_bytes(scorer.read_bytes().replace(b"leaf_value=", b"leaf_value=1", 1))
    with pytest.raises(ChecksumMismatch, match="lorien-train"):
        load_ranker(copy, TARGET)
    scorer.unlink()
    with pytest.raises(ChecksumMismatch):
        load_ranker(copy, TARGET)


@pytest.mark.parametrize("damage", [b"", b"\x00\xff\x00", b"[1, 2]", b'{"format_version": 1}'])
def test_a_damaged_description_is_refused(copy, damage):
    about, _ = model_files(copy)
    about.write_bytes(damage)
    with pytest.raises(ChecksumMismatch, match="damaged"):
        load_ranker(copy, TARGET)


def test_an_edited_description_is_refused(copy):
    about, _ = model_files(copy)
    content = json.loads(about.read_text())
    content["model"]["calibration"]["fraction"][1] = 0.9
    about.write_text(json.dumps(content))
    with pytest.raises(ChecksumMismatch, match="changed"):
        load_ranker(copy, TARGET)


def test_a_model_of_a_newer_format_is_refused(copy):
    about, _ = model_files(copy)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format_version": 99}))
    with pytest.raises(SchemaMismatch, match="format version 99"):
        load_ranker(copy, TARGET)


def test_a_table_of_another_feature_set_is_refused(trained, features, tmp_path):
    newer = FeatureSet("toy", 2, FEATURES.columns)
    table = write_table(tmp_path / "t.parquet", "vgg", range(3), features=newer)
    ranker = load_ranker(trained[0], TARGET)
    with pytest.raises(SchemaMismatch, match="toy/2"):
        ranker.score_table(table)
    mixed = write_tables(tmp_path / "mixed")
    write_table(mixed / "dialect=toy" / f"target={TARGET.key}" / "new.parquet", "vgg", range(3), features=newer)
    with pytest.raises(SchemaMismatch, match="different feature sets"):
        train(mixed, tmp_path / "models")


def test_bad_tables_are_refused_with_what_to_do(trained, tmp_path):
    with pytest.raises(BadInput, match="lorien featurize"):
        train(tmp_path / "nothing", tmp_path / "models")
    with pytest.raises(BadInput, match="no preset 'huge'"):
        train(tmp_path, tmp_path / "models", preset="huge")
    ranker = load_ranker(trained[0], TARGET)
    with pytest.raises(BadInput, match="no feature table"):
        ranker.score_table(tmp_path / "missing.parquet")
    (tmp_path / "binary.parquet").write_bytes(b"\x00" * 1000)
    with pytest.raises(SchemaMismatch):
        ranker.score_table(tmp_path / "binary.parquet")
    one = tmp_path / "one" / "dialect=toy" / f"target={TARGET.key}" / "t.parquet"
    write_table(one, "vgg", [1])
    with pytest.raises(BadInput, match="at least two workloads"):
        train(tmp_path / "one", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_network_is_held_out_whole_where_a_model_learns_how_far_to_trust_itself(features):
    (group,) = group_tables(features)
    rows = read_rows(group)
    fold = network_folds(rows, rows.all(), folds=4)
    assert fold is not None
    assert len(np.unique(fold)) > 1
    home = {}
    for workload, network in zip(rows.workload, rows.network, strict=True):
        home.setdefault(rows.keys[workload], set()).add(network)
    alone = {index: fold[rows.keys.index(key)] for key, found in home.items() if len(found) == 1 for index in found}
    for key, found in home.items():
        assert fold[rows.keys.index(key)] in {alone[network] for network in found}
    one = rows.network == rows.network[0]
    few = network_folds(rows, one, folds=4)
    assert few is None


def test_latencies_that_cannot_be_are_failures(tmp_path):
    table = pq.read_table(write_table(tmp_path / "t.parquet", "vgg", [1], rows=6))
    dirty = pa.array([1.0, 0.0, -1.0, float("nan"), float("inf"), None])
    index = table.schema.get_field_index("latency_s")
    pq.write_table(table.set_column(index, table.schema.field(index), dirty), tmp_path / "t.parquet")
    (group,) = group_tables(tmp_path)
    rows = read_rows(group)
    assert np.isnan(rows.latency_s).tolist() == [False, True, True, True, True, True]
    assert rows.candidates(rows.all()).value().tolist() == [1.0, 0, 0, 0, 0, 0]


def test_sampling_keeps_the_best_and_some_failures_of_every_workload():
    rng = np.random.default_rng(0)
    workload = np.repeat([0, 1, 2], [5, 1000, 3000])
    value = np.where(rng.random(4005) < 0.5, 0.0, rng.random(4005))
    kept = sample_rows(workload, value, 405, seed=0)
    np.testing.assert_array_equal(kept, sample_rows(workload, value, 405, seed=0))
    assert kept.sum() <= 405
    assert np.bincount(workload[kept]).tolist() == [5, 200, 200]
    for index in (1, 2):
        mine = workload == index
        assert kept[mine & (value == value[mine].max())].all()
        assert np.sum(value[mine & kept] == 0) == 50
    weights = row_weights(workload)
    assert weights.mean() == pytest.approx(1.0)


def test_a_report_judges_a_model_on_what_it_has_not_seen(trained, features):
    """Held-out workloads by all trees, those trained on by the folds fitted without them: the scores of training."""
    problems: list[str] = []
    (judged,) = judge(features, trained[0], problems)
    assert problems == []
    ((dialect, target),) = open_models(trained[0]).list()
    model = open_models(trained[0]).read(dialect, target).model
    unseen = np.array([key not in model.workload_keys for key in judged.keys])
    assert (unseen.sum(), judged.by_fold, judged.in_sample) == (8, len(model.workload_keys), 0)
    (scores,) = evaluate(features, trained[0]).values()
    assert judged.top[unseen, 0].mean() == pytest.approx(scores["top1_mean"])
    assert judged.top[unseen, 4].mean() == pytest.approx(scores["top5_mean"])
    assert judged.random[unseen, 4].mean() == pytest.approx(scores["random_top5_mean"])
    # The model promises what holds for networks it has not seen, the folds by which it is judged mix them.
    np.testing.assert_allclose(judged.top[~unseen].mean(axis=0), model.confidence["expected"], atol=0.03)
    assert np.corrcoef(judged.predicted, judged.measured)[0, 1] > 0.5


def test_a_model_of_one_network_promises_what_its_folds_showed(tmp_path):
    folder = tmp_path / "features" / "dialect=toy" / f"target={TARGET.key}"
    write_table(folder / "vgg.parquet", "vgg", range(12))
    (report,) = train(tmp_path / "features", tmp_path / "models", time_limit_s=60).values()
    assert report.holdout["held_out"].startswith("each workload once")
    (judged,) = judge(tmp_path / "features", tmp_path / "models", [])
    model = open_models(tmp_path / "models").read("toy", TARGET.key).model
    np.testing.assert_allclose(judged.top.mean(axis=0), model.confidence["expected"])


def test_a_report_does_not_judge_a_model_on_what_it_was_trained_on(trained, features, tmp_path):
    """A model of an earlier Lorien does not say which folds saw what; a target without a model is told of."""
    stored = open_models(trained[0]).read("toy", TARGET.key)
    older = dataclasses.replace(stored.model, workload_folds=[])
    shutil.copytree(stored.folder, tmp_path / "files")
    open_models(tmp_path / "models").publish(older, tmp_path / "files")
    problems: list[str] = []
    (judged,) = judge(features, tmp_path / "models", problems)
    assert (len(judged.keys), judged.in_sample, judged.by_fold) == (8, len(older.workload_keys), 0)
    shutil.copytree(features, tmp_path / "features")
    for network in ("vgg", "resnet"):
        next((tmp_path / "features").rglob(f"{network}.parquet")).unlink()
    arm = Target.parse("llvm -mtriple=aarch64-linux-gnu -num-cores=4")
    write_table(tmp_path / "features" / "arm.parquet", "vgg", range(2), target=arm)
    assert list(judge(tmp_path / "features", tmp_path / "models", problems)) == []
    assert ["no model for" in problem or "was trained on all" in problem for problem in problems] == [True, True]
