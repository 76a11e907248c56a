"""The recipes of the documentation, as they stand there, with the libraries themselves."""

import ast
import re
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from rsfl.noise import Gaussian
from rsfl.smooth import ABSTAIN, Smoother
from rsfl.train import Batches, CrossEntropy, fit

PAGES = [
    (Path(__file__).parents[2] / f"docs/tutorials/{name}.md").read_text()
    for name in ("recipes", "denoise")
]
RECIPES = {
    section.partition("\n")[0]: code[0]
    for page in PAGES
    for section in page.split("\n## ")[1:]
    if (code := re.findall(r"```python\n(.*?)```", section, re.S))
}
NEEDS = "needs the extra rsfl[plugins]: make test-plugins"
WORDS = ["the", "film", "was", "great", "good", "fine", "bad", "awful", "poor", "not", "it"]

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own


def recipe(heading, **names):
    """What a recipe of the page leaves behind; it has at most 12 lines beside imports."""
    code = RECIPES[heading]
    imports = [one for one in ast.parse(code).body if isinstance(one, ast.Import | ast.ImportFrom)]
    lines = sum(bool(line.strip()) for line in code.splitlines())
    assert lines - sum(one.end_lineno - one.lineno + 1 for one in imports) <= 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, heading, "exec"), names)
    return names


def blobs(n, seed):
    """Images (n, 1, 6, 6) of four classes: one quarter is brighter than the rest."""
    y = torch.arange(n) % 4
    x = 0.4 + 0.1 * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    rows, columns = y // 2 * 3, y % 2 * 3
    for i in range(n):
        x[i, 0, rows[i] : rows[i] + 3, columns[i] : columns[i] + 3] += 0.3
    return x.clamp(0, 1), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def model():
    made = network()
    x, y = blobs(400, seed=0)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    fit(made, Batches(x, y, 50), CrossEntropy(Gaussian(0.25)), optimizer, epochs=8)
    return made


@pytest.fixture
def smoother(model):
    return Smoother(model, Gaussian(0.25), 4, bounds=(0, 1))


def right(certificate, y, share):
    assert float((certificate.label == y).double().mean()) >= share
    assert float(certificate.radius.max()) > 0.1


def test_every_recipe_is_tested():
    source = Path(__file__).read_text()
    assert len(RECIPES) >= 8
    assert [heading for heading in RECIPES if source.count(f'"{heading}"') == 0] == []


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    datasets = pytest.importorskip("datasets", reason=NEEDS)
    torch.manual_seed(0)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    good = [f"the film was {word}" for word in ("great", "good", "fine", "not bad")]
    bad = [f"it was {word}" for word in ("awful", "bad", "poor", "not great")]
    y = torch.tensor([1] * 4 + [0] * 4)
    rows = datasets.Dataset.from_dict({"text": good + bad, "label": y.tolist()})
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    found = recipe(
        "A classifier of Hugging Face transformers",
        **{"model": model, "tokenizer": tokenizer, "texts": good + bad, "y": y},
        **{"optimizer": optimizer, "dataset": rows, "folder": tmp_path / "run"},
    )
    right(found["certificate"], y, 0.7)
    assert found["certificate"].touched == "the output of bert.embeddings"
    assert torch.equal(found["logged"].counts, found["certificate"].counts)
    assert torch.equal(found["logged"].radius, found["certificate"].radius)
    # The mask is a part of the input: what is padded has no influence.
    short = tokenizer(good[:1], padding="max_length", max_length=7, return_tensors="pt")
    votes = found["smoother"].certify(short, n=1000)
    assert int(votes.label) == 1


def test_data_sets(tmp_path, smoother):
    datasets = pytest.importorskip("datasets", reason=NEEDS)
    image = pytest.importorskip("PIL.Image", reason=NEEDS)
    x, y = blobs(6, seed=1)
    raw = (x * 255).round().byte()
    pictures = [image.fromarray(one.expand(3, -1, -1).permute(1, 2, 0).numpy()) for one in raw]
    photos = datasets.Dataset.from_dict({"image": pictures, "label": y.tolist()})
    photos = photos.cast_column("image", datasets.Image())
    grey = Smoother(lambda z: smoother.model(z.mean(1, keepdim=True)), Gaussian(0.4), 4)
    triples = [
        (one.float().div(255).expand(3, -1, -1), int(label), "meta")
        for one, label in zip(raw, y, strict=True)
    ]
    found = recipe(
        "A data set of Hugging Face or torchvision",
        **{"smoother": grey, "photos": photos, "dataset": triples, "folder": tmp_path},
    )
    right(found["certificate"], y, 0.8)
    assert found["labels"].tolist() == y.tolist()
    assert torch.equal(found["certificate"].counts, found["other"].counts)


def test_normalised(model):
    class Timm(nn.Module):
        default_cfg: ClassVar = {
            "num_classes": 4,
            "mean": (0.5,),
            "std": (0.2,),
            "input_size": (1, 6, 6),
        }

        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, normalised):
            return self.inner(normalised * 0.2 + 0.5)

    x, y = blobs(8, seed=1)
    found = recipe("A model that expects normalised inputs", model=Timm(), x=x)
    assert found["certificate"].unit == "pixels"
    right(found["certificate"], y, 0.8)
    plain = Smoother(model, Gaussian(0.25), 4).certify(x, n=1000)
    assert (found["certificate"].counts - plain.counts).abs().max() <= 2  # rounding


def test_lightning():
    pytest.importorskip("pytorch_lightning", reason=NEEDS)
    x, y = blobs(400, seed=0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    made = network()
    before = made[1].weight.detach().clone()
    x_new, y_new = blobs(8, seed=1)
    found = recipe(
        "A loop of Lightning, in mixed precision", model=made, loader=loader, quiet=quiet, x=x_new
    )
    assert not torch.equal(before, made[1].weight)
    right(found["certificate"], y_new, 0.8)
    wide = Smoother(made, Gaussian(0.25), 4).certify(x_new, n=1000)
    assert not torch.equal(wide.counts, found["certificate"].counts)  # another arithmetic


def test_foolbox_and_torchattacks(smoother):
    pytest.importorskip("foolbox", reason=NEEDS)
    pytest.importorskip("torchattacks", reason=NEEDS)
    x, y = blobs(32, seed=1)
    found = recipe("Attacks of foolbox and torchattacks", smoother=smoother, x=x, y=y)
    assert bool(found["fooled"].any())
    certificate = smoother.certify(x, n=2000)
    for moved in (found["moved"], found["again"]):
        apart = (moved - x).flatten(1).norm(dim=1).double()
        label = smoother.predict(moved.detach(), n=500).label
        flipped = (label != ABSTAIN) & (label != certificate.label) & ~certificate.abstained
        assert not (flipped & (apart < certificate.radius)).any()


def test_art(model, smoother):
    pytest.importorskip("art", reason=NEEDS)
    x, y = blobs(12, seed=1)
    found = recipe(
        "An estimator of ART, and ART's own smoothing", model=model, x=x, y=y, smoother=smoother
    )
    clean = found["estimator"].predict(x.numpy()).argmax(1)
    attacked = found["estimator"].predict(found["moved"]).argmax(1)
    assert (clean == y.numpy()).mean() >= 0.9
    assert (attacked == y.numpy()).mean() < (clean == y.numpy()).mean()
    ours, theirs = found["certificate"], found["radius"]
    both = ~ours.abstained.numpy() & (found["label"] == ours.label.numpy())
    assert both.sum() >= 8
    gap = np.abs(ours.radius.numpy() - theirs)[both]
    assert gap.max() < 0.12  # two draws of 1000 votes
    assert gap.mean() > 0


def test_onnx_runtime(tmp_path, model):
    onnx = pytest.importorskip("onnx", reason=NEEDS)
    pytest.importorskip("onnxruntime", reason=NEEDS)
    helper = onnx.helper
    first, last = model[1], model[3]
    weights = {"a": first.weight, "b": first.bias, "c": last.weight, "d": last.bias}
    held = [onnx.numpy_helper.from_array(w.detach().numpy(), n) for n, w in weights.items()]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "a", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "c", "d"], ["logits"], transB=1),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [
        [helper.make_tensor_value_info(name, kind, shape)]
        for name, shape in (("x", ["n", 1, 6, 6]), ("logits", ["n", 4]))
    ]
    graph = helper.make_graph(nodes, "model", *ends, held)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    x, y = blobs(8, seed=1)
    found = recipe("A session of ONNX Runtime", folder=tmp_path, x=x)
    right(found["certificate"], y, 0.8)
    plain = Smoother(model, Gaussian(0.25), 4).certify(x, n=1000)
    assert (found["certificate"].counts - plain.counts).abs().max() <= 2  # rounding


def test_a_diffusion_model_is_loaded(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason=NEEDS)
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    schedule = diffusers.DDPMScheduler(num_train_timesteps=200)
    diffusers.DDPMPipeline(unet, schedule).save_pretrained(tmp_path)
    x = blobs(8, seed=1)[0].repeat_interleave(2, 2).repeat_interleave(2, 3)[..., 2:10, 2:10]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = recipe("A public diffusion model", name=tmp_path, classifier=classifier, x=x)
    certificate, denoiser = found["certificate"], found["denoiser"]
    assert certificate.unit == "pixels"
    # The same votes as of diffusers' own step from that time to the picture.
    noisy = x + 0.25 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    alpha = schedule.alphas_cumprod[denoiser.step]
    z = alpha.sqrt() * (2 * noisy - 1)
    with torch.no_grad():
        told = unet.eval()(z, torch.full((8,), denoiser.step)).sample
        theirs = schedule.step(told, denoiser.step, z).pred_original_sample
        assert torch.allclose(denoiser.eval()(noisy), (theirs + 1) / 2, atol=1e-5)
