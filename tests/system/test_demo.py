"""The demo in its quick form: it ends well, its page is whole, and a disagreement is an exit code."""

import base64
import html.parser
import io
import re

import pytest
import torch
from PIL import Image

from fastgen import cli
from fastgen.bench.case import Match
from fastgen.demo import command, comparison, digits, flows, pictures, spins, texts
from fastgen.demo.settings import FULL, QUICK
from fastgen.models import NSF


class Page(html.parser.HTMLParser):
    """Collects the words, addresses and open elements of a page."""

    VOID = ("meta", "img", "br", "path", "use", "rect", "stop", "image", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.addresses, self.open, self.ids = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href", "xlink:href") if name in given]
        self.ids += [given["id"]] if tag in ("clippath", "marker") and "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Exit code and directory of a quick demo, and what its longer parts made."""
    out, made = tmp_path_factory.mktemp("demo") / "out", {}

    def keeping(name, make):
        def run(*arguments):
            made[name] = make(*arguments)
            return made[name]

        return run

    with pytest.MonkeyPatch.context() as patch:
        for module in (digits, spins, flows, texts):
            patch.setattr(module, "make", keeping(module, module.make))
        code = cli.main(["demo", "--quick", "--out", str(out)])
    return code, out, made


def test_it_ends_well_and_leaves_a_page_and_the_model(demo):
    code, out, _ = demo
    assert code == 0
    assert (out / "report.html").is_file() and (out / "rbm-quick" / "model.safetensors").is_file()


def test_the_page_is_whole_and_needs_nothing_else(demo):
    text = (demo[1] / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    # Chains, inpainting, 3 lattices; 8 and 6 pictures in the plane, samples and walks.
    assert sum(address.startswith("data:") for address in page.addresses) == 5 + 8 + 6 + 2
    assert text.count("<svg") == 3 and len(page.ids) == len(set(page.ids))
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert pictures.INK not in text and pictures.FAINT not in text


def test_the_page_says_what_was_found_and_how_to_make_it_again(demo):
    words = Page((demo[1] / "report.html").read_text()).words
    for wanted in (
        "log-likelihood",
        "standard errors",
        "bit for bit",
        "RealNVP with 6 couplings",
        "bits a pixel",
        "made_inverse, zuko",
        "fastgen demo --out out",
        "Why is the sky blue?",
        "HAMLET.",
        "tokens a second",
        "tiny GPT-2 float32 batch 2",
        "transformer: a text written alone is the text among 8",
        "kernels for GPUs take no part",
    ):
        assert wanted in re.sub(r"\s+", " ", words), wanted
    assert torch.__version__.split("+")[0] in words and "DIFFERS" not in words and "NO" not in words.split()


def test_run_again_it_takes_the_machine_that_is_there(demo):
    _, out, made = demo
    again = digits.make(QUICK, out / "rbm-quick")
    assert again.model.fingerprint() == made[digits].model.fingerprint()
    assert torch.equal(again.chains, made[digits].chains)


def test_chains_are_looked_at_on_their_way(demo):
    made = demo[2][digits]
    steps = QUICK.chain_steps[-1]
    straight = made.model.sample(
        torch.arange(QUICK.digit_chains), seed=QUICK.seed, steps=steps, probabilities=True
    )
    assert torch.equal(made.chains[-1], straight[:, 0])


def test_inpainting_keeps_what_is_known(demo):
    made = demo[2][digits]
    assert made.known[:, :14].all() and not made.known[:, 14:].any()
    assert torch.equal(made.inpainted[:, 0, :, :14], made.given[..., :14].float())
    assert not torch.equal(made.inpainted[:, 0], made.inpainted[:, 1])


def test_densities_go_from_noise_to_data_and_hold_all_probability(demo):
    for plane in demo[2][flows].planes:
        noise, side = plane.stages[0], plane.stages.shape[-1]
        pixel = (2 * flows.BOUND / side) ** 2
        assert torch.allclose(noise, noise.T, atol=1e-5) and torch.allclose(noise, noise.flip(0), atol=1e-5)
        assert torch.allclose(noise.sum() * pixel, torch.tensor(0.9946), atol=2e-3)  # of a square of +-3
        assert ((plane.stages.sum((1, 2)) * pixel - 1).abs() < 0.1).all()


def test_pictures_of_points_and_densities_have_the_same_axes():
    points = torch.tensor(
        [[2.9, 2.9], [2.9, 2.8], [-2.9, 0.1], [7.0, 0.0]]
    )  # right top, twice; left; outside
    counts = flows._pixels(points, 6)
    assert counts[0, 5] == 2 and counts[2, 0] == 1 and counts.sum() == 3
    grid = flows._grid(6).view(6, 6, 2)
    assert torch.allclose(grid[0, 5], torch.tensor([2.5, 2.5]))
    assert torch.allclose(grid[2, 0], torch.tensor([-2.5, 0.5]))


def test_a_stage_is_the_density_of_noise_that_came_so_far():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        flow = NSF(2, steps=4, hidden=16, bins=6)
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        z = torch.randn(40_000, 2)
        layers, fine, coarse = list(flow.eval().flow.layers), 60, 12
        stages, cut = flows._stages(flow, fine), len(layers)
        for stage in stages:
            points, _ = flows.FlowSequence(layers[cut:]).inverse(z)
            for layer in reversed(layers[:cut]):
                if isinstance(layer, flows.Permutation):
                    points, _ = layer.inverse(points)
            seen = flows._pixels(points, coarse) / len(z)
            blocks = stage.view(coarse, fine // coarse, coarse, fine // coarse).sum((1, 3))
            assert (seen - blocks * (2 * flows.BOUND / fine) ** 2).abs().max() < 0.006
            cut = max((i + 1 for i in range(cut - 1) if isinstance(layers[i], flows.Coupling)), default=0)


def test_flow_libraries_that_are_absent_leave_out_their_rows(monkeypatch):
    assert {peer.name for _, peer in comparison.flows(FULL)} == {"nflows", "zuko"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zuko" else object())
    assert {peer.name for _, peer in comparison.flows(FULL)} == {"nflows"}


def test_a_peer_that_is_absent_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else object())
    monkeypatch.setattr(texts, "_answers", lambda settings: [])
    made = texts.make(QUICK)
    assert made.speeds == [] and [name for name, _ in made.absent] == ["transformers"]
    assert "pip install 'fastgen[bench]'" in made.absent[0][1]


def test_texts_that_differ_get_no_time(monkeypatch):
    monkeypatch.setattr(texts, "check", lambda case, peer, device: Match(False, "made up"))
    case = next(case for case in texts.table(["generate"]) if case.quick)
    speed = texts._compare(case, case.peers[0], QUICK)
    assert speed.timed is None and "DIFFERS: made up" in command._tokens([speed])[1]


def test_a_wrong_answer_is_exit_code_1(demo, monkeypatch, tmp_path):
    for module, result in demo[2].items():
        monkeypatch.setattr(module, "make", lambda *arguments, result=result: result)
    monkeypatch.setattr(
        comparison, "check", lambda case, peer, device: Match(peer.name == "reference", "made up")
    )
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "DIFFERS" in (tmp_path / "report.html").read_text()


def test_a_missing_package_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "jinja2" else object()
    )
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "fastgen demo: the demo needs jinja2: pip install 'fastgen[report]'\n"


def test_tiles_put_rows_and_columns_where_they_belong():
    pictures_of = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 2, 2)
    whole = pictures.tiles(pictures_of, gap=1)
    assert whole.shape == (5, 8)
    assert whole[0].tolist() == [0, 0, 0, 1, 1, 0, 2, 2] and whole[3].tolist() == [3, 3, 0, 4, 4, 0, 5, 5]
    assert not whole[2].any()


def test_ink_is_black_on_a_transparent_ground():
    data = pictures.png(torch.tensor([[0.0, 1.0]])).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == bytes([0, 0, 0, 255])  # black, alpha
