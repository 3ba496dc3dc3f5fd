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
from fastgen.demo import command, comparison, digits, pictures, spins
from fastgen.demo.settings import QUICK


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
        for module in (digits, spins):
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
    assert (
        sum(address.startswith("data:") for address in page.addresses) == 5
    )  # chains, inpainting, 3 lattices
    assert text.count("<svg") == 3 and len(page.ids) == len(set(page.ids))
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert pictures.INK not in text and pictures.FAINT not in text


def test_the_page_says_what_was_found_and_how_to_make_it_again(demo):
    words = Page((demo[1] / "report.html").read_text()).words
    for wanted in (
        "log-likelihood",
        "standard errors",
        "bit for bit",
        "fastgen demo --out out",
        "never run on a GPU",
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


def test_a_wrong_answer_is_exit_code_1(demo, monkeypatch, tmp_path):
    for module, result in demo[2].items():
        monkeypatch.setattr(module, "make", lambda *arguments, result=result: result)
    monkeypatch.setattr(
        comparison, "check", lambda case, peer, device: Match(peer.name != "eager", "made up")
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
