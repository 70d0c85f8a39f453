"""Parts of the knowledge-graph example beside slow loops: reading files, ranks, gradients, candidates."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from example_programs import EXAMPLES

OPTIONS = {
    "model": "complex", "rank": 3, "negatives": 100, "batch": 6, "answers": 100, "epochs": 1, "learning_rate": 0.01,
    "rho": 0.99, "n3": 0.0, "dropout": 0.0, "init": 0.5, "every": 1, "patience": 1, "seed": 1, "optimizer": "exact",
}  # fmt: skip


@pytest.fixture(scope="module")
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        from parts import bilinear, ranking, triples

        yield SimpleNamespace(bilinear=bilinear, ranking=ranking, triples=triples)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def folder(tmp_path):
    files = {"train": ["a\tlikes\tb", "b\tlikes\tc", "a\tknows\tc"], "valid": ["c\tlikes\td"], "test": ["a\tlikes\tc"]}
    for part, lines in files.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    return tmp_path


def test_a_graph_is_read(examples, folder):
    graph = examples.triples.read_graph(folder)
    assert graph.entities == ["a", "b", "c", "d"]
    assert graph.relations == ["knows", "likes"]
    np.testing.assert_array_equal(graph.train, [[0, 1, 1], [1, 1, 2], [0, 0, 2]])
    np.testing.assert_array_equal(graph.unseen(), [3])
    np.testing.assert_array_equal(graph.both_ways(graph.test), [[0, 1, 2], [2, 3, 0]])


def test_spaces_around_a_name_make_no_other_entity(examples, folder):
    (folder / "train.txt").write_text("a\tlikes\tb \n b\tlikes \tc\na\tknows\tc\u00a0\n", encoding="utf8")
    graph = examples.triples.read_graph(folder)
    assert (graph.entities, graph.relations) == (["a", "b", "c", "d"], ["knows", "likes"])


def test_lines_may_end_as_on_windows_and_be_empty(examples, folder):
    (folder / "train.txt").write_bytes("\ufeffä b\tlikes\tc\r\n\r\n  \na\tlikes\tb".encode())
    graph = examples.triples.read_graph(folder)
    assert graph.entities == ["a", "b", "c", "d", "ä b"]
    assert len(graph.train) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a\tlikes\tb\na likes c\n",
            "line 2: expected head, relation and tail, separated by tabs, got 1 field: 'a likes",
        ),
        (b"\na\tlikes\tb\tc\n", "line 2: expected head, relation and tail, separated by tabs, got 4 fields: "),
        (
            b"a\tlikes\t\n",
            "line 1: expected head, relation and tail, separated by tabs, got 3 fields, one of them empty",
        ),
        (b"a\t" + 100 * b"x", "x...'"),
        (b"a\tlikes\tb\n\xff\tlikes\tb\n", "line 2: expected text in UTF-8, got the byte 0xff"),
        (b"\n \n", "train.txt: expected triples, got an empty file"),
        (b"a\tknows\tb\n", "valid.txt, line 1: expected a relation that occurs in train.txt, got 'likes'"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(examples, folder, content, message):
    (folder / "train.txt").write_bytes(content)
    with pytest.raises(examples.triples.GraphError) as error:
        examples.triples.read_graph(folder)
    assert message in str(error.value)


def test_files_that_are_not_there_are_named(examples, folder):
    (folder / "valid.txt").unlink()
    with pytest.raises(examples.triples.GraphError, match=r"not there: valid.txt"):
        examples.triples.read_graph(folder)
    with pytest.raises(examples.triples.GraphError, match=r"expected a folder with .*, got .*nowhere, which is none"):
        examples.triples.read_graph(folder / "nowhere")


def random_graph(examples, rng, entities=9, relations=2, triples=40):
    """Return a graph in which every question has several answers."""
    every = rng.permutation(list(itertools.product(range(entities), range(relations), range(entities))))[:triples]
    names = [f"e{i}" for i in range(entities)], [f"r{i}" for i in range(relations)]
    return examples.triples.Graph(*names, *np.split(every, [triples // 2, triples * 3 // 4]))


def make_model(examples, graph, **changed):
    options = examples.bilinear.Options(**OPTIONS | changed)
    return examples.bilinear.Model(len(graph.entities), 2 * len(graph.relations), options), options


def slow_score(model, head, relation, tail, kept=None):
    """Return the score of a triple as the papers write it, in float64; ``kept`` multiplies what the head asks."""

    def numbers(row):
        return row.astype(float) if model.dtype == np.float32 else row[::2] + 1j * row[1::2].astype(float)

    h, r, t = numbers(model.entities[head]), numbers(model.relations[relation]), numbers(model.entities[tail])
    if kept is None:
        return sum((a * b * np.conj(c)).real for a, b, c in zip(h, r, t, strict=True))
    asked = [a * b for a, b in zip(h, r, strict=True)]
    parts = asked if model.dtype == np.float32 else [part for x in asked for part in (x.real, x.imag)]
    return sum(a * b * float(c) for a, b, c in zip(parts, kept, model.entities[tail], strict=True))


@pytest.mark.parametrize("kind", ["complex", "distmult"])
@pytest.mark.parametrize("at_once", [1, 2**25])
def test_ranks_equal_those_of_a_slow_loop(examples, pool, monkeypatch, kind, at_once):
    monkeypatch.setattr(examples.ranking, "ASKED_BYTES", at_once)
    rng = np.random.default_rng(1)
    graph = random_graph(examples, rng)
    model, _ = make_model(examples, graph, model=kind)
    model.entities[5] = model.entities[2]  # equals
    known = {tuple(x) for part in (graph.train, graph.valid, graph.test) for x in graph.both_ways(part)}
    expected = []
    for head, relation, tail in graph.both_ways(graph.test):
        others = [e for e in range(9) if e == tail or (head, relation, e) not in known]
        scores = np.array([slow_score(model, head, relation, e) for e in others])
        own = scores[others.index(tail)]
        equal = np.abs(scores - own) < 1e-6
        expected.append(1 + np.count_nonzero(~equal & (scores > own)) + (np.count_nonzero(equal) - 1) / 2)
    found = examples.ranking.ranks(model, graph, examples.triples.Answers(graph), graph.test, pool)
    np.testing.assert_array_equal(found, expected)
    assert len(set(found)) > 4
    assert any(rank % 1 for rank in found)  # some are means over ties


def test_no_score_is_the_worst_rank(examples, pool):
    graph = random_graph(examples, np.random.default_rng(1))
    model, _ = make_model(examples, graph)
    model.entities[:] = np.nan
    found = examples.ranking.ranks(model, graph, examples.triples.Answers(graph), graph.test, pool)
    assert found.min() > len(graph.entities)


def test_the_summary(examples):
    told = examples.ranking.summary(np.array([1.0, 1.5, 4.0, 10.0, 20.0]))
    mean = (1 + 1 / 1.5 + 1 / 4 + 1 / 10 + 1 / 20) / 5
    assert told == pytest.approx({"mrr": mean, "hits@1": 0.2, "hits@3": 0.4, "hits@10": 0.8})


class Noted:
    """Stand-in for the optimizer that keeps the gradients."""

    def gather(self, var, indices, out):
        out[:] = var[indices]
        return out

    def apply_gradients(self, pairs):
        self.gradients = []
        for grad, var in pairs:
            dense = np.zeros(var.shape)
            np.add.at(dense, grad.indices, grad.values)
            self.gradients.append(dense)


def slow_loss(model, batch, drawn, rarity, n3, kept):
    """Return the loss of a batch, triple by triple."""
    total = 0.0
    for owner, tail in zip(batch.owners, batch.tails, strict=True):
        head, relation, mask = batch.heads[owner], batch.relations[owner], kept[owner]
        right = batch.tails[batch.owners == owner]
        scores = {e: slow_score(model, head, relation, e, mask) + (e not in right) * float(rarity[e]) for e in drawn}
        total += math.log(sum(math.exp(score) for score in scores.values())) - scores[tail]
        for row in (model.entities[head], model.relations[relation], model.entities[tail]):
            sizes = np.abs(row) if model.dtype == np.float32 else [abs(complex(*x)) for x in row.reshape(-1, 2)]
            total += n3 * sum(float(size) ** 3 for size in sizes)
    return total


@pytest.mark.parametrize("kind", ["complex", "distmult"])
@pytest.mark.parametrize("negatives", [3, 100])
@pytest.mark.parametrize("chunk", [2, 128])
def test_the_gradient_is_that_of_the_loss(examples, pool, monkeypatch, kind, negatives, chunk):
    monkeypatch.setattr(examples.bilinear, "CHUNK", chunk)
    graph = random_graph(examples, np.random.default_rng(2), entities=18)
    model, options = make_model(examples, graph, model=kind, negatives=negatives, n3=0.2)
    questions = examples.bilinear.Questions(graph.both_ways(graph.train), 100)
    trainer = examples.bilinear.Trainer(model, questions, options, pool)
    batch = next(examples.bilinear.Epoch(questions, options, 0).batches(0))
    assert len(batch.tails) > len(batch.heads) > 2  # some have several answers
    candidates = examples.bilinear.Candidates(questions, 18, options)
    drawn, noted = candidates.draw(batch), Noted()
    assert (len(drawn) == 18) == (negatives == 100)
    kept = np.random.default_rng(1).choice(np.float32([0, 1, 1.5]), (len(batch.heads), model.entities.shape[1]))
    trainer._dropout = lambda shape, seed: kept[seed[-1] - 1 :][: shape[0]]

    def loss():
        return slow_loss(model, batch, drawn, candidates.rarity, 0.2, kept)

    expected = slow_loss(model, batch, drawn, candidates.rarity, 0, kept)
    assert trainer.train_batch(noted, batch) == pytest.approx(expected, rel=1e-5)
    for table, gradient in zip((model.entities, model.relations), noted.gradients, strict=True):
        assert gradient.any()
        for place in np.ndindex(table.shape):
            before = table[place]
            table[place] = before + np.float32(2**-8)
            above = loss()
            table[place] = before - np.float32(2**-8)
            slope = (above - loss()) * 2**7
            table[place] = before
            assert slope == pytest.approx(gradient[place], rel=1e-3, abs=2e-3)


def test_dropout_keeps_the_mean_and_is_drawn_anew(examples, pool, monkeypatch):
    monkeypatch.setattr(examples.bilinear, "CHUNK", 2)
    graph = random_graph(examples, np.random.default_rng(2))
    model, options = make_model(examples, graph, dropout=0.5, rank=40)
    questions = examples.bilinear.Questions(graph.train, 100)
    trainer = examples.bilinear.Trainer(model, questions, options, pool)
    kept = trainer._dropout((1000, 80), [1, 2, 3])
    assert set(np.unique(kept)) == {0, 2}
    assert kept.mean() == pytest.approx(1, abs=0.02)

    drawn, dropout = [], trainer._dropout
    trainer._dropout = lambda shape, seed: drawn.append(dropout(shape, seed).tobytes()) or dropout(shape, seed)
    for _ in range(2):
        for epoch in range(2):
            for batch in examples.bilinear.Epoch(questions, options, epoch).batches(0):
                trainer.train_batch(Noted(), batch)
    assert len(drawn) == 2 * len(set(drawn)) > 20


def test_candidates_are_drawn_as_often_as_their_rarity_says(examples):
    rng = np.random.default_rng(3)
    triples = np.stack([rng.integers(0, 40, 600), rng.integers(0, 4, 600), rng.zipf(1.5, 600) % 40], axis=1)
    options = examples.bilinear.Options(**OPTIONS | {"negatives": 5, "batch": 20})
    questions = examples.bilinear.Questions(triples, 100)
    candidates = examples.bilinear.Candidates(questions, 40, options)
    counts, batches = np.zeros(40), 0
    for epoch in range(100):
        for batch in examples.bilinear.Epoch(questions, options, epoch).batches(0):
            drawn = candidates.draw(batch)
            assert len(drawn) <= candidates.most
            assert len(np.unique(drawn)) == len(drawn)
            assert set(batch.tails) <= set(drawn)
            counts[drawn] += 1
            batches += 1
    chance = np.exp(-candidates.rarity)
    assert chance.min() < 0.2 < 0.9 < chance.max()
    np.testing.assert_allclose(counts / batches, chance, atol=0.06)


def test_an_epoch_has_each_triple_once_and_goes_on_anywhere(examples):
    rng = np.random.default_rng(4)
    triples = np.concatenate([rng.integers(0, 3, (40, 3)), [[7, 7, i] for i in range(20)]])
    options = examples.bilinear.Options(**OPTIONS)
    questions = examples.bilinear.Questions(triples, 100)
    assert len(questions) == len(np.unique(triples[:, :2], axis=0))
    questions = examples.bilinear.Questions(triples, 7)
    assert len(questions) == len(np.unique(triples[:, :2], axis=0)) + 2
    assert np.diff(questions.bounds).max() == 7
    epochs = [examples.bilinear.Epoch(questions, options, number) for number in (0, 0, 1)]
    batches = [list(epoch.batches(0)) for epoch in epochs]
    found = [
        [np.stack([batch.heads[batch.owners], batch.relations[batch.owners], batch.tails], 1) for batch in each]
        for each in batches
    ]
    different = np.unique(triples, axis=0)
    for each, epoch in zip(found, epochs, strict=True):
        np.testing.assert_array_equal(np.unique(np.concatenate(each), axis=0), different)
        np.testing.assert_array_equal(np.cumsum([len(part) for part in each]), epoch.learnt)
        assert epoch.learnt[-1] == len(different)
        assert 2 < len(each) <= -(-len(different) // options.batch)
    np.testing.assert_array_equal(np.concatenate(found[0]), np.concatenate(found[1]))
    assert not np.array_equal(np.concatenate(found[0]), np.concatenate(found[2]))
    later = list(epochs[0].batches(2))
    np.testing.assert_array_equal(later[0].tails, batches[0][2].tails)
    assert later[0].seed == batches[0][2].seed
