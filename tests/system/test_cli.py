"""The command `fastgen`: help, bad input in one sentence, Ctrl-C, and each command's own work."""

import subprocess
import sys
import types

import pytest
import torch
from command_line import outcome

import fastgen
from fastgen import cli, models, sampling

HEAVY = ("matplotlib", "sklearn", "scipy", "jax", "thrml", "pandas", "jinja2", "triton")


@pytest.fixture
def failing(monkeypatch):
    """Make the command `doctor` raise."""

    def install(error: BaseException) -> None:
        def execute(given):
            raise error

        module = types.SimpleNamespace(add_arguments=lambda parser: None, execute=execute)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)

    return install


def test_help_names_every_command_and_so_does_no_argument_at_all(capsys):
    code, text, _ = outcome(capsys, "--help")
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert name in text and command.summary in text
    assert outcome(capsys)[:2] == (0, text)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_its_own_help(capsys, command):
    code, text, _ = outcome(capsys, command, "--help")
    assert code == 0 and text.startswith(f"usage: fastgen {command}")


def test_version(capsys):
    assert outcome(capsys, "--version")[:2] == (0, f"fastgen {fastgen.__version__}\n")


def test_help_imports_nothing_heavy():
    code = "import sys; from fastgen import cli; cli.main([]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stderr.split()
    assert "fastgen.cli" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    code, _, error = outcome(capsys, "smaple")
    assert code == 2 and "'smaple'" in error and all(name in error for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("n is 0\nand more"),
        FileNotFoundError("n is 0"),
        RuntimeError("n is 0"),
        FloatingPointError("n is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, failing, error):
    failing(error)
    assert outcome(capsys, "doctor") == (2, "", "fastgen doctor: n is 0\n")


def test_ctrl_c_says_how_to_go_on(capsys, failing):
    failing(KeyboardInterrupt())
    code, _, error = outcome(capsys, "doctor")
    assert code == 130 and error.strip() == f"fastgen doctor: {cli.COMMANDS['doctor'].stopped}"


def test_a_bug_shows_its_traceback(capsys, failing):
    failing(AttributeError("a bug"))
    with pytest.raises(AttributeError):
        cli.main(["doctor"])


def test_a_command_is_imported_only_when_it_is_asked_for(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: asked.append(name) or pytest.fail(name))
    outcome(capsys, "--help")
    assert asked == []


def test_sample_writes_what_sampling_in_memory_gives(capsys, tmp_path):
    out = tmp_path / "spins"
    code, text, _ = outcome(
        capsys, *f"sample ising -n 5 --seed 3 --size 8 --beta 0.5 --option sweeps=4 --out {out}".split()
    )
    assert code == 0 and "5 samples, each 8 x 8 int8, in 1 shards" in text
    wanted = fastgen.sample(models.Ising(8, 8), 5, seed=3, beta=0.5, sweeps=4, progress=False)
    assert torch.equal(sampling.load(out), wanted)


def test_sample_takes_up_a_run_and_refuses_another_ones_directory(capsys, tmp_path):
    command = f"sample ising --size 8 --option sweeps=2 --out {tmp_path / 'spins'} --seed"
    assert outcome(capsys, *command.split(), "1", "-n", "3")[0] == 0
    before = sampling.load(tmp_path / "spins").clone()
    assert outcome(capsys, *command.split(), "1", "-n", "6")[0] == 0
    assert torch.equal(sampling.load(tmp_path / "spins")[:3], before)
    code, _, error = outcome(capsys, *command.split(), "2", "-n", "6")
    assert code == 2 and "belongs to another run (seed 1 there, 2 here)" in error
    assert torch.equal(sampling.load(tmp_path / "spins")[:3], before)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("isin", "MODEL is 'isin', wanted the directory of a saved model, a .gguf file, zoo:NAME, or ising"),
        ("ising --size 7", "spins is a periodic lattice of 7 x 7, wanted even sides"),
        ("ising --beta nan --size 8", "beta holds nan, wanted finite numbers"),
        ("ising --size 8 --option speed=3", "'speed' is no option of Ising.sample; options are beta, sweeps"),
        (". --size 8", "--size goes with the model ising alone; use --option NAME=VALUE"),
        ("ising --size 8 --top-k 3", "'top_k' is no option of Ising.sample; options are beta, sweeps"),
        ("ising --size 8 --option out=3", "--option out=... has an argument of its own, wanted --out"),
        ("ising --size 8 --device cuda:9", "device is 'cuda:9', but torch finds"),
        ("ising --size 8 --device gpu", "device is 'gpu', wanted cpu, cuda or cuda:N"),
        ("ising --size 8 --device cpu:1", "device is 'cpu:1', wanted cpu, cuda or cuda:N"),
        ("ising --option sweeps", "'sweeps' is not NAME=VALUE"),
        (".", "config.json is missing"),
    ],
)
def test_sample_refuses_bad_input_in_one_sentence(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, error = outcome(capsys, "sample", *arguments.split(), "-n", "2", "--out", str(tmp_path / "out"))
    last = error.strip().splitlines()[-1]  # a progress bar or the usage may stand above
    assert code == 2 and last.startswith("fastgen sample: ") and sentence in last and "Traceback" not in error


def test_train_then_sample_pictures_of_the_saved_model(capsys, tmp_path):
    train = f"train rbm --data digits --hidden 16 --chains 10 --epochs 1 --out {tmp_path / 'rbm'}".split()
    code, text, _ = outcome(capsys, *train)
    assert code == 0 and "RBM after 15 steps" in text
    assert models.load(tmp_path / "rbm").config["hidden"] == 16
    sample = f"sample {tmp_path / 'rbm'} -n 2 --option steps=3 --format png --out {tmp_path / 'png'}".split()
    assert outcome(capsys, *sample)[0] == 0
    assert len(list((tmp_path / "png").rglob("*.png"))) == 2


def test_train_goes_on_where_it_stopped_to_the_same_weights(capsys, tmp_path):
    train = ["train", "rbm", "--data", "digits", "--hidden", "16", "--chains", "10", "--out"]
    outcome(capsys, *train, str(tmp_path / "twice"), "--epochs", "1")
    outcome(capsys, *train, str(tmp_path / "twice"), "--epochs", "2")
    outcome(capsys, *train, str(tmp_path / "once"), "--epochs", "2")
    twice, once = (models.load(tmp_path / name) for name in ("twice", "once"))
    assert twice.fingerprint() == once.fingerprint()


def test_train_refuses_bad_input_in_one_sentence(capsys, tmp_path):
    command = ["train", "rbm", "--data", "digits", "--out", str(tmp_path / "rbm")]
    for name, sentence in (("lr", "lr is 0.0"), ("hidden", "hidden is 0"), ("epochs", "epochs is 0")):
        code, _, error = outcome(capsys, *command, f"--{name}", "0")
        assert code == 2 and error.startswith(f"fastgen train: {sentence}")


def test_a_flow_is_trained_measured_and_sampled(capsys, tmp_path):
    train = "train realnvp --data digits --conditional --option steps=2 --option hidden=[16] --epochs 1 --out"
    code, text, error = outcome(capsys, *train.split(), str(tmp_path / "flow"))
    assert code == 0, error
    assert "RealNVP after 15 steps" in text and "bits per dimension" in text
    sample = ["sample", str(tmp_path / "flow"), "-n", "3", "--format", "png", "--out", str(tmp_path / "out")]
    assert outcome(capsys, *sample, "--option", "context=7")[0] == 0
    assert len(list((tmp_path / "out").glob("**/*.png"))) == 3
    code, _, error = outcome(capsys, *sample[:-1], str(tmp_path / "other"))
    assert code == 2 and "context is None, wanted (3,) classes 0 to 9" in error


def test_a_flow_of_a_table_reports_nats(capsys, tmp_path):
    train = "train maf --data wine --option steps=1 --option hidden=8 --epochs 1 --out"
    code, text, _ = outcome(capsys, *train.split(), str(tmp_path / "flow"))
    assert code == 0 and "nats, in all" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train rbm --data wine", "--data is 'wine', wanted images for an rbm: mnist5k or digits"),
        ("train rbm --data digits --option steps=2", "--option and --conditional go with flows"),
        ("train nsf --data wine --hidden 3", "--hidden goes with the model rbm alone; use --option hidden="),
        ("train nsf --data wine --conditional", "these data have no classes"),
        ("train glow --data wine", "wanted (channels, height, width)"),
        ("train nsf --data wine --option bins=1", "bins is 1, wanted at least 2"),
        ("train nsf --data wine --option colour=1", "'colour' is no option of NSF; options are kind, steps"),
        ("sample zoo:unicorn -n 1", "the zoo has no 'unicorn', it has "),
    ],
)
def test_flows_and_the_zoo_refuse_bad_input_in_one_sentence(capsys, tmp_path, arguments, sentence):
    code, _, error = outcome(capsys, *arguments.split(), "--out", str(tmp_path / "flow"))
    assert code == 2 and sentence in error and error.count("\n") == 1
