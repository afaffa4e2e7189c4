"""Evaluate a model directory on held-out records, with and without their images.

    python scripts/evaluate.py model=runs/demo/model input=runs/held_out/images output_dir=runs/eval

writes `predictions.jsonl` (one line per question, appended as it goes), `metrics.json` (scores
with intervals) and `results.json` (result rows), and prints the table. `input` is what `embed.py
modality=image` wrote, or records. Run again, it continues or prints what it found.
"""

from pathlib import Path

from omegaconf import DictConfig

from revision.config import entry


def run(cfg: DictConfig) -> Path:
    """Evaluate as `conf/evaluate.yaml` says; returns the output directory."""
    # torch and transformers take seconds to import: not before the config has been composed.
    import torch

    import revision
    from revision.evaluation.heldout import input_digest, open_heldout
    from revision.evaluation.journal import finished_scores
    from revision.evaluation.results import write_results
    from revision.evaluation.runner import Settings, evaluate, model_digest
    from revision.models.llm import has_bfloat16
    from revision.report.labels import result_rows
    from revision.report.tables import markdown, results_table

    settings = Settings(
        task=cfg.task,
        visual=tuple(cfg.visual),
        question=cfg.question,
        max_new_tokens=cfg.max_new_tokens,
        batch_size=cfg.batch_size,
        limit=cfg.limit,
        seed=cfg.draw_seed,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and has_bfloat16(device))
    dtype = torch.bfloat16 if low else torch.float32
    output_dir, source = Path(cfg.output_dir), Path(cfg.input)
    plan = {
        "model": model_digest(Path(cfg.model)),
        "input": input_digest(source),
        "image_root": cfg.image_root,
        "template": cfg.template,
        "dtype": str(dtype),
        **vars(settings),
    }
    scores = finished_scores(output_dir, plan)
    if scores is None:
        model = revision.load(cfg.model, dtype=dtype)
        model.template = cfg.template or model.template
        root = Path(cfg.image_root) if cfg.image_root else None
        heldout = open_heldout(
            source, encoder=model.encoder, image_root=root, image_map=model.image_map
        )
        scores = evaluate(model, heldout, output_dir, settings, plan=plan)
    rows = result_rows(
        scores, setting=cfg.setting, stage=cfg.after_stage, seed=cfg.seed, split=cfg.split
    )
    write_results(output_dir / "results.json", rows)
    print(markdown(results_table(rows)))
    print(f"{output_dir}: predictions.jsonl, metrics.json, results.json")
    return output_dir


main = entry(run, "evaluate")

if __name__ == "__main__":
    main()
