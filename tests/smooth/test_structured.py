"""Batches of several tensors: certificates are those of a model that hides the structure."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rsfl import runs, verify
from rsfl.noise import Gaussian, Uniform
from rsfl.smooth import At, Ballot, Certificate, Inputs, Parts, Smoother

B, T, D, K = 5, 4, 3, 3
DRAWS = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 7, (B, T), generator=DRAWS)
MASK = (torch.rand(B, T, generator=DRAWS) < 0.7).long().index_fill(1, torch.tensor([0]), 1)
PIXELS = torch.rand(B, 2, T, generator=DRAWS)
Y = torch.arange(B) % K


class Text(nn.Module):
    """A classifier of tokens under a mask, with the words of other libraries."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.mix = nn.Embedding(7, D), nn.Linear(D, D)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(D, K)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = torch.tanh(self.mix(self.embeddings(input_ids)))
        weight = attention_mask[..., None] / attention_mask.sum(1, keepdim=True)[..., None]
        return SimpleNamespace(logits=self.head(self.drop((hidden * weight).sum(1))))


class Image(nn.Module):
    """Pixels, and what is known beside them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(2 * T + T, K)

    def forward(self, pixels, side):
        return self.layer(torch.cat([pixels.flatten(1), side], 1))


class Hidden(nn.Module):
    """What is left of a model of text when mask and ids are built into it."""

    def __init__(self, model, row):
        super().__init__()
        self.model, self.row = model, row

    def forward(self, embedded):
        hidden = torch.tanh(self.model.mix(embedded))
        mask = MASK[self.row]
        return self.model.head((hidden * (mask / mask.sum())[None, :, None]).sum(1))


TEXT = {"input_ids": IDS, "attention_mask": MASK}


def hidden_text(row):
    return Hidden(Text(), row), Text().embeddings(IDS[row : row + 1]).detach()


def hidden_image(row, model):
    side = MASK[row : row + 1].float()
    return lambda pixels: model(pixels, side.expand(len(pixels), -1)), PIXELS[row : row + 1]


def hidden_both(row, model):
    def packed(x):
        return model(x[:, : 2 * T].view(-1, 2, T), x[:, 2 * T :])

    return packed, torch.cat([PIXELS[row].flatten(), MASK[row].float()])[None]


IMAGE = Image()
CASES = {
    "an embedding": (At(Text(), "embeddings"), TEXT, hidden_text),
    "a named part": (
        Parts(IMAGE, "pixels"),
        {"side": MASK.float(), "pixels": PIXELS},
        lambda row: hidden_image(row, IMAGE),
    ),
    "a part by place": (
        Parts(IMAGE, 0),
        (PIXELS, MASK.float()),
        lambda row: hidden_image(row, IMAGE),
    ),
    "two parts at once": (
        Parts(IMAGE, "pixels", "side"),
        {"pixels": PIXELS, "side": MASK.float()},
        lambda row: hidden_both(row, IMAGE),
    ),
}


def same(one, other):
    for name in ("label", "radius", "p_lower", "p_upper", "counts", "selection_counts", "n"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("law", [Gaussian(0.4), Uniform(0.6)])
def test_certificates_are_those_of_a_model_that_hides_the_structure(name, law):
    model, batch, hidden = CASES[name]
    smoother = Smoother(model, law, K)
    whole, at = smoother.certify(batch, n=1000), smoother.certify_at(batch, 0.05, n_max=1000)
    guess = smoother.predict(batch, n=300)
    assert (whole.radius > 0).any()
    for row in range(B):
        plain, x = hidden(row)
        alone = Smoother(plain, law, K)
        same(alone.certify(x, n=1000, index=[row]), whole[row])
        same(alone.certify_at(x, 0.05, n_max=1000, index=[row]), at[row])
        same(alone.predict(x, n=300, index=[row]), guess[row])


def test_a_certificate_says_what_is_touched_and_what_is_not():
    certificate = Smoother(At(Text(), "embeddings"), Gaussian(0.4), K).certify(TEXT, n=1000)
    assert certificate.touched == "the output of embeddings"
    assert "other-parts" in {one.id for one in certificate.assumptions}
    assert certificate.unit == "input units of the output of embeddings"
    assert "l2 radius in input units of the output of embeddings" in repr(certificate)
    assert certificate[2].touched == certificate.touched
    plain = Smoother(nn.Linear(3, 2), Gaussian(0.4), 2).certify(torch.rand(1, 3), n=1000)
    assert plain.touched == ""
    assert "other-parts" not in {one.id for one in plain.assumptions}
    with pytest.raises(ValueError, match="parts must agree in"):
        Certificate.cat([certificate, plain])


def test_files_keep_what_is_touched(tmp_path):
    ballot = Smoother(Parts(IMAGE, 0), Gaussian(0.4), K).ballot((PIXELS, MASK.float()), n=1000)
    ballot.save(tmp_path / "ballot.json")
    assert Ballot.load(tmp_path / "ballot.json").touched == "0"
    ballot.certificate().save(tmp_path / "certificate.json")
    found = Certificate.load(tmp_path / "certificate.json")
    assert (found.touched, found.assumptions) == ("0", ballot.certificate().assumptions)
    assert verify.verify(tmp_path / "certificate.json").status == 0
    content = ballot.document()
    bare = {name: value for name, value in content.items() if name != "touched"}
    with pytest.raises(ValueError, match="ballots must agree in touched, got '0' and ''"):
        Ballot.of_document(content, bare)


def items():
    return [
        ({"input_ids": a.tolist(), "attention_mask": b}, int(y))
        for a, b, y in zip(IDS, MASK, Y, strict=True)
    ]


def test_a_run_over_a_structured_data_set_resumes_and_is_verified(tmp_path):
    smoother = Smoother(At(Text(), "embeddings"), Gaussian(0.4), K)
    first, _ = runs.certify(smoother, items(), out=tmp_path, n=1000, limit=B)
    same(first, smoother.certify(TEXT, n=1000))
    again, labels = runs.certify(smoother, items(), out=tmp_path, n=1000, limit=B)
    same(first, again)
    assert labels.tolist() == Y.tolist()
    report = verify.verify(tmp_path, witness=verify.Witness(smoother, items()))
    assert report.status == 0, report
    plain = verify.verify(tmp_path, witness=verify.Witness(At(Text(), "embeddings"), items()))
    assert plain.status == 0, plain

    changed = items()
    changed[1][0]["attention_mask"] = 1 - MASK[1]
    with pytest.raises(ValueError, match="input 1 is another than was certified"):
        runs.certify(smoother, changed, out=tmp_path, n=1000, limit=B)
    elsewhere = Smoother(At(Text(), "mix"), Gaussian(0.4), K)
    with pytest.raises(ValueError, match=r"model is .* differs in .*attributes"):
        runs.certify(elsewhere, items(), out=tmp_path, n=1000, limit=B)


def test_an_input_that_cannot_be_certified_is_recorded(tmp_path):
    nan = PIXELS.clone()
    nan[1, 0, 0] = torch.nan
    data = [((x, m), int(y)) for x, m, y in zip(nan, MASK.float(), Y, strict=True)]
    data[3] = ((nan[3], MASK[3, :2].float()), 0)
    smoother = Smoother(Parts(IMAGE, 0), Gaussian(0.4), K)
    with pytest.raises(ValueError, match="input 1: x must be finite, got nan"):
        runs.certify(smoother, data, out=tmp_path / "a", n=1000)
    data[3] = data[4]
    found, _ = runs.certify(smoother, data, out=tmp_path / "b", n=1000, on_bad="record")
    assert found.abstained[1]
    assert found.n.tolist() == [1000, 0, 1000, 1000, 1000]
    assert verify.verify(tmp_path / "b").status == 0
    data[3] = ((nan[3], MASK[3, :2].float()), 0)
    with pytest.raises(ValueError, match="inputs must have parts of the same shapes"):
        runs.certify(smoother, data, out=tmp_path / "c", n=1000, on_bad="record")


def test_what_stands_beside_an_input_does_not_change_it():
    smoother = Smoother(At(Text(), "embeddings"), Gaussian(0.4), K)
    whole = smoother.certify(TEXT, n=500)
    rows = torch.tensor([3, 1])
    some = {name: part[rows] for name, part in TEXT.items()}
    same(smoother.certify(some, n=500, index=rows, batch_size=7), whole[rows])
    assert torch.equal(smoother.votes(TEXT, 300), smoother.votes(TEXT, 300, batch_size=1))


def test_an_influence_of_the_batch_through_what_goes_along_is_found():
    class Longest(Image):
        def forward(self, pixels, side):
            return super().forward(pixels, side) * side.sum(1).max()

    smoother = Smoother(Parts(Longest(), 0), Gaussian(0.4), K)
    with pytest.raises(ValueError, match="model must be one function of a single input"):
        smoother.certify((PIXELS, 1 + torch.arange(B)[:, None] * torch.ones(B, T)), n=1000)


def test_modes_and_callers_tensors_are_left_alone():
    class Writing(Image):
        def forward(self, pixels, side):
            side.zero_()
            return super().forward(pixels.zero_() + 1, side)

    model = Writing().train()
    batch = PIXELS.clone(), MASK.float()
    smoother = Smoother(Parts(model, 0), Gaussian(0.4), K)
    smoother.certify(batch, n=1000)
    assert model.training
    assert torch.equal(batch[0], PIXELS)
    assert torch.equal(batch[1], MASK.float())
    text = At(Text().train(), "embeddings")
    Smoother(text, Gaussian(0.4), K).certify(TEXT, n=1000)
    assert text.model.drop.training
    assert not text.model.embeddings._forward_hooks


def test_the_centre_is_the_output_whatever_comes_after_it():
    """The next module may write into the tensor that the place gave."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Linear(4, K)
    writing, plain = (
        nn.Sequential(layers[0], nn.ReLU(inplace=inplace), layers[1]) for inplace in (True, False)
    )
    x = torch.rand(6, 3) - 0.5
    assert torch.equal(At(writing, "0").checked(x).touched, layers[0](x))
    same(*(Smoother(At(one, "0"), Gaussian(0.4), K).certify(x, n=500) for one in (writing, plain)))


def test_the_model_may_write_into_what_a_touched_output_is_made_of():
    class Turning(Text):
        def forward(self, input_ids, attention_mask):
            kept = 1 - attention_mask
            attention_mask.copy_(kept)
            return super().forward(input_ids, 1 - attention_mask)

    batch = {"input_ids": IDS.clone(), "attention_mask": MASK.clone()}
    found = Smoother(At(Turning(), "embeddings"), Gaussian(0.4), K).certify(batch, n=500)
    assert torch.equal(batch["attention_mask"], MASK)
    same(found, Smoother(At(Text(), "embeddings"), Gaussian(0.4), K).certify(TEXT, n=500))


def test_what_is_touched_for_one_model_is_not_for_another():
    batch = {"pixels": PIXELS, "side": MASK.float()}
    told = Parts(IMAGE, "pixels").checked(batch)
    other = Smoother(Parts(IMAGE, "side"), Gaussian(0.4), K)
    for ask in (other.certify, lambda inputs: other.probabilities(inputs, 3)):
        with pytest.raises(ValueError, match="this model, which touches side, got inputs of pix"):
            ask(told)


def test_a_part_that_is_the_memory_of_a_touched_one_is_refused():
    class Leaky(nn.Module):  # reads from the thumbnail what the noise hides
        def forward(self, pixels, thumbnail):
            return torch.stack([thumbnail.flatten(1).sum(1), 0 * pixels.flatten(1).sum(1)], 1)

    smoother = Smoother(Parts(Leaky(), "pixels"), Gaussian(0.4), 2)
    for thumbnail in (PIXELS, PIXELS.flatten(1), PIXELS[:, :1]):
        with pytest.raises(ValueError, match=r"batch\['thumbnail'\] must not be the same tensor"):
            smoother.certify({"pixels": PIXELS, "thumbnail": thumbnail}, n=500)
    smoother.certify({"pixels": PIXELS, "thumbnail": PIXELS[:, 1:]}, n=500)


def test_whoever_reads_a_run_is_told_the_part(tmp_path):
    smoother = Smoother(At(Text(), "embeddings"), Gaussian(0.4), K)
    found, labels = runs.certify(smoother, items(), out=tmp_path / "run", n=500)
    part = "input units of the output of embeddings"
    assert part in runs.as_text(runs.read_runs([tmp_path / "run"]), ["0", "0.1"])
    runs.evidence(tmp_path / "run", tmp_path / "page.md")
    assert part in (tmp_path / "page.md").read_text()
    with pytest.raises(ValueError, match=f"unit must be '{part}', that of the certificate"):
        runs.write_tsv(tmp_path / "run.tsv", found, labels, torch.ones(B).numpy())
    elsewhere, _ = runs.certify(
        Smoother(At(Text(), "mix"), Gaussian(0.4), K), items(), out=tmp_path / "mix", n=500
    )
    with pytest.raises(ValueError, match="curves must share one norm and unit"):
        runs.envelope({"a": (found, labels), "b": (elsewhere, labels)}, 0.1)


def test_probabilities_reach_what_is_before_the_place():
    model = Text().eval()
    smoother = Smoother(At(model, "embeddings"), Gaussian(0.4), K)
    p = smoother.probabilities(TEXT, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(p.sum(1), torch.ones(B))
    p[:, 0].sum().backward()
    assert model.embeddings.weight.grad.abs().sum() > 0
    module = smoother.module(samples=6)
    assert torch.allclose(module(TEXT).exp().sum(1), torch.ones(B))
    draws = smoother.noise(TEXT, 2)
    assert draws.shape == (2, B, T, D)
    zero = smoother.logits(TEXT, 0 * draws)
    assert torch.allclose(zero[0], model(IDS, MASK).logits, atol=1e-6)


def test_preprocessing_scales_the_touched_part_alone():
    batch = {"pixels": PIXELS, "side": MASK.float()}
    scaled = Smoother(
        Parts(IMAGE, "pixels"), Gaussian(0.4), K, preprocessing=(0.5, 0.25), bounds=(0, 1)
    )
    certificate = scaled.certify(batch, n=1000)
    assert certificate.unit == "pixels of pixels"
    assert certificate.touched == "pixels"

    class Inside(Image):
        def forward(self, pixels, side):
            return super().forward((pixels - 0.5) / 0.25, side)

    same(certificate, Smoother(Parts(Inside(), "pixels"), Gaussian(0.4), K).certify(batch, n=1000))
    with pytest.raises(TypeError, match="noise is at the output of embeddings: put it inside"):
        Smoother(At(Text(), "embeddings"), Gaussian(0.4), K, preprocessing=(0.5, 0.25))
    with pytest.raises(
        TypeError, match="bounds are of pixels, and noise is at the output of embed"
    ):
        Smoother(At(Text(), "embeddings"), Gaussian(0.4), K, bounds=(0, 1))


def test_threads_that_share_a_model_do_not_answer_for_each_other():
    model = Text()
    wanted, found = {}, {}
    texts = {seed: {"input_ids": IDS.roll(seed, 0), "attention_mask": MASK} for seed in range(3)}
    for seed, text in texts.items():
        wanted[seed] = Smoother(At(model, "embeddings"), Gaussian(0.4), K).votes(text, 2000)

    def vote(seed):
        smoother = Smoother(At(model, "embeddings"), Gaussian(0.4), K)
        found[seed] = smoother.votes(texts[seed], 2000, batch_size=50)

    threads = [threading.Thread(target=vote, args=(seed,)) for seed in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], wanted[seed]) for seed in texts)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pair, self.unused = nn.Linear(3, 3), nn.LSTM(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        self.pair(x)
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: At(Text(), "embedding"), ValueError, "place must be the name of one of the"),
        (lambda: At(len, "0"), TypeError, "model must be a torch.nn.Module, got <built-in"),
        (lambda: Parts(IMAGE), ValueError, "names must be different parts of the batch"),
        (lambda: Parts(IMAGE, 0, 0), ValueError, "names must be different parts of the batch"),
        (
            lambda: Smoother(At(Twice(), "layer"), Gaussian(1), 3).certify(torch.rand(2, 3)),
            ValueError,
            "runs once in each pass, got 2 calls of 'layer'",
        ),
        (
            lambda: Smoother(At(Twice(), "unused"), Gaussian(1), 3).certify(torch.rand(2, 3)),
            ValueError,
            "runs once in each pass, got 0 calls of 'unused'",
        ),
        (
            lambda: Smoother(At(Twice(), "pair"), Gaussian(1), 3).certify(torch.rand(2, 3)),
            TypeError,
            "gives one floating point tensor, got tuple from 'pair'",
        ),
        (
            lambda: Smoother(Parts(IMAGE, "x"), Gaussian(1), K).certify({"pixels": PIXELS}),
            ValueError,
            r"batch must have 'x', got the parts \['pixels'\]",
        ),
        (
            lambda: Smoother(Parts(Text(), "input_ids"), Gaussian(1), K).certify(TEXT),
            TypeError,
            r"batch\['input_ids'\] must have a floating point dtype to carry noise, .* smooth.At",
        ),
        (
            lambda: Smoother(Parts(IMAGE, 0), Gaussian(1), K).certify((PIXELS, MASK[:2])),
            ValueError,
            "batch must have as many rows in each part",
        ),
        (
            lambda: Smoother(Parts(IMAGE, 0), Gaussian(1), K).certify((PIXELS, "words")),
            TypeError,
            r"batch\[1\] must be a tensor with a row for each input, got str: a tokenizer",
        ),
        (
            lambda: Smoother(Parts(IMAGE, 0), Gaussian(1), K).certify(iter(())),
            TypeError,
            "batch must be a mapping or tuple of tensors, got tuple_iterator",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_votes_of_parts_cost_one_gather_each():
    """Calls and rows are those of a tensor."""

    class Counting(Image):
        rows = ()

        def forward(self, pixels, side):
            self.rows = (*self.rows, len(pixels))
            return super().forward(pixels, side)

    model = Counting()
    smoother = Smoother(Parts(model, 0), Gaussian(0.4), K, spot_check=False)
    smoother.votes((PIXELS, MASK.float()), 1000, batch_size=400)
    assert model.rows == (400,) * 12 + (200,)


def test_inputs_are_rows_of_all_parts():
    inputs = Parts(IMAGE, 1).split((MASK, PIXELS))
    assert (len(inputs), inputs.shape, inputs.device) == (B, PIXELS.shape, PIXELS.device)
    one = inputs[2]
    assert isinstance(one, Inputs)
    assert one.shape == PIXELS.shape[1:]
    assert torch.equal(one[None].filled()[0], MASK[2:3])
    assert torch.equal(one[None].filled()[1], PIXELS[2:3])
