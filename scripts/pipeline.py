"""The whole path in one command: encoder, embed, align, pretrain, tune, evaluate, report.

    python scripts/pipeline.py                          the demo: runs/demo/report.html
    python scripts/pipeline.py -m name=sweep data.num_samples=400,800 data.max_caption_words=4,8

Each step prints the command that does the same by hand, and runs once per distinct input: a sweep
recomputes only what a changed value reaches, and a run that was killed goes on where it stopped.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the entry scripts lie here, beside the package

from revision.config import as_part, claim_directory, compose, entry, run_directory  # noqa: E402
from revision.pipeline import Result, StepCache  # noqa: E402


@dataclass
class Commands:
    """The entry scripts as cached steps."""

    cache: StepCache

    def run(
        self,
        step: str,
        script: str,
        arguments: Sequence[str],
        inputs: Sequence[Result] = (),
        files: Sequence[Path] = (),
    ) -> Result:
        """Run `python <script>.py <arguments>` into a directory of its own.

        A path in `arguments` that lies in the output of one of `inputs` counts by that step's
        key, so that caches in different places agree.
        """

        module = import_module(script.replace("/", "."))
        root = script.rsplit("/", 1)[-1]

        def call(directory: Path) -> None:
            place = [f"output_dir={directory}"]
            if script == "train":
                place = [f"run_root={directory.parent}", f"name={directory.name}"]
            print(f"$ python {script}.py {' '.join([*arguments, *place])}", flush=True)
            with as_part():
                module.run(compose(root, [*arguments, *place]))

        cfg = compose(root, arguments)
        for key in getattr(module, "NEUTRAL", ()):
            OmegaConf.update(cfg, key, None, force_add=True)
        config = OmegaConf.to_yaml(cfg, resolve=False)
        for result in inputs:
            config = config.replace(str(result.directory), result.key)
        return self.cache.step(
            step,
            call,
            config={"script": script, "config": config.splitlines()},
            inputs=tuple(inputs),
            files=tuple(files),
        )


@dataclass(frozen=True)
class Features:
    """What the pictures and texts became, by the split that they come from."""

    prepared: Result
    encoder: Result
    sets: dict[str, Result]

    def images(self, split: str) -> Path:
        return self.sets[split] / "images"

    def texts(self, split: str) -> Path:
        return self.sets[split] / "texts"


def run(cfg: DictConfig) -> Path:
    """Run the pipeline as `conf/pipeline.yaml` says; returns the run directory."""
    from revision.report.demo import Trail, write_demo

    begin = time.monotonic()
    run_dir = run_directory(cfg)
    claim_directory(run_dir, cfg, neutral=("cache_dir",))
    commands = Commands(StepCache(Path(cfg.cache_dir)))

    features = embed(commands, cfg)
    trails: list[Trail] = []
    for name in filter(None, dict.fromkeys([cfg.baseline, cfg.setting])):
        trails.append(follow(commands, cfg, name, features, tune=cfg.tune and name == cfg.setting))
    return write_demo(
        run_dir,
        trails,
        encoder_dir=features.encoder / "encoder",
        image_root=features.prepared / "images",
        steps=commands.cache.results,
        facts={"seed": str(cfg.seed), "LLM": cfg.llm_name},
        seconds=time.monotonic() - begin,
    )


def embed(commands: Commands, cfg: DictConfig) -> Features:
    """Train the encoder's heads, then embed every split that something later reads."""
    data_dir = Path(cfg.data.dir)
    prepared = prepare(commands, data_dir)
    encoder = train_encoder(commands, cfg, data_dir)
    wanted = {"pretrain": "text", "tune": "image", "val": "both", "test": "both"}
    if "paired" in (cfg.setting, cfg.baseline):
        wanted["pretrain"] = "both"
    sets = {}
    for split, modality in wanted.items():
        arguments = [
            "encoder=clipart",
            f"encoder.path={encoder / 'encoder'}",
            f"input={prepared / split}.json",
            f"image_root={prepared / 'images'}",
            f"modality={modality}",
        ]
        if split == "pretrain":
            arguments += caption_controls(cfg)
        sets[split] = commands.run(f"embed-{split}", "embed", arguments, [prepared, encoder])
    return Features(prepared, encoder, sets)


def caption_controls(cfg: DictConfig) -> list[str]:
    """What stage 1 reads of the captions, as `embed.py` takes it."""
    chosen = {key: cfg.data[key] for key in ("caption_length", "max_caption_words")}
    return [f"data.{key}={value}" for key, value in chosen.items() if value is not None]


def prepare(commands: Commands, data_dir: Path) -> Result:
    """Pictures, conversations and captions."""
    shards = sorted(data_dir.glob("*.tar"))
    return commands.run("prepare", "scripts/prepare_demo", [f"data_dir={data_dir}"], files=shards)


def train_encoder(commands: Commands, cfg: DictConfig, data_dir: Path) -> Result:
    """Contrastive heads on two pretrained towers, on a split that nothing later sees."""
    towers = {}
    for split in ("contrastive", "val"):
        tar = data_dir / f"{split}-000.tar"
        towers[split] = commands.run(
            f"towers-{split}", "embed", ["encoder=towers", f"input={tar}"], files=[tar]
        )
    arguments = [
        "stage=contrastive",
        f"data.images={towers['contrastive'] / 'images'}",
        f"data.texts={towers['contrastive'] / 'texts'}",
        f"data.val_images={towers['val'] / 'images'}",
        f"data.val_texts={towers['val'] / 'texts'}",
        *cfg.overrides.contrastive,
        *cfg.more.contrastive,
    ]
    return commands.run("encoder", "train", arguments, [*towers.values()])


def follow(
    commands: Commands, cfg: DictConfig, name: str, features: Features, *, tune: bool
) -> "Trail":
    """One setting from its visual rows to its scores after each stage."""
    from revision.report.demo import Stage, Trail

    setting = cfg.settings[name]
    visual = setting.get("visual", "real")
    seen = [f"data.visual={visual}", f"seed={cfg.seed}", f"logger={cfg.log_to}"]
    seen.append(f"group={cfg.name}")
    aligned = None
    rows, inputs = features.images("pretrain"), [features.sets["pretrain"]]
    if setting.get("alignment"):
        aligned = align(commands, setting.alignment, features)
        rows, inputs = aligned / "shards", [aligned]
    val = features.sets["val"]
    samples = cfg.data.num_samples
    pretrain = commands.run(
        "pretrain",
        "train",
        [
            "stage=pretrain",
            f"llm={cfg.llm_name}",
            "encoder=clipart",
            f"encoder.path={features.encoder / 'encoder'}",
            f"data.shards={rows}",
            f"data.val_shards={val / 'images'}",
            *([] if samples is None else [f"data.num_samples={samples}"]),
            *seen,
            *cfg.overrides.pretrain,
            *cfg.more.pretrain,
        ],
        [*inputs, val, features.encoder],
    )
    scored = [evaluate(commands, cfg, name, pretrain, features)]
    stages = [Stage("pretrain", pretrain, scored)]
    if tune:
        sft = commands.run(
            "sft",
            "train",
            [
                "stage=sft",
                f"start_from={pretrain / 'model'}",
                f"data.shards={features.images('tune')}",
                f"data.val_shards={val / 'images'}",
                *seen,
                *cfg.overrides.sft,
                *cfg.more.sft,
            ],
            [pretrain, features.sets["tune"], val],
        )
        kinds = ["", "questions"] if cfg.questions else [""]
        scored = [evaluate(commands, cfg, name, sft, features, kind) for kind in kinds]
        stages.append(Stage("sft", sft, scored))
    return Trail(name, aligned, stages)


def align(commands: Commands, alignment: str, features: Features) -> Result:
    """Fit on the texts of stage 1 and the pictures of stage 2, which are not pairs."""
    pretrain, tune, test = (features.sets[split] for split in ("pretrain", "tune", "test"))
    arguments = [
        f"alignment={alignment}",
        f"source={pretrain / 'texts'}",
        f"target={tune / 'images'}",
        f"holdout_source={test / 'texts'}",
        f"holdout_target={test / 'images'}",
    ]
    return commands.run(f"align-{alignment}", "align", arguments, [pretrain, tune, test])


def evaluate(
    commands: Commands,
    cfg: DictConfig,
    name: str,
    trained: Result,
    features: Features,
    kind: str = "",
) -> Result:
    """Scores on held-out pictures: with them, blind, and with another picture."""
    stage = trained.name
    blind = cfg.settings[name].get("visual") == "zero"
    conditions = ["zero"] if blind else list(cfg.conditions[stage])
    arguments = [
        f"model={trained / 'model'}",
        f"input={features.images('test')}",
        f"visual=[{','.join(conditions)}]",
        f"setting={name}",
        f"after_stage={stage}",
        f"seed={cfg.seed}",
        *cfg.overrides.evaluate,
        *cfg.overrides[f"evaluate_{kind or stage}"],
        *cfg.more.evaluate,
    ]
    step = f"evaluate-{stage}-{kind}".rstrip("-")
    return commands.run(step, "scripts/evaluate", arguments, [trained, features.sets["test"]])


main = entry(run, "pipeline")

if __name__ == "__main__":
    main()
