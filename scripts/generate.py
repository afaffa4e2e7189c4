"""Ask a model about pictures and print its answer.

python scripts/generate.py model=runs/demo/model image=cat.png prompt="What is in this picture?"
python scripts/generate.py model=runs/demo/model "image=[a.png,b.png]" prompt="What differs?"
"""

from omegaconf import DictConfig

from revision.config import entry


def run(cfg: DictConfig) -> str:
    """Answer as `conf/generate.yaml` says, print the answer and return it."""
    # torch and transformers take seconds to import: not before the config has been composed.
    import revision
    from revision.records import load_image

    paths = [cfg.image] if isinstance(cfg.image, str) else list(cfg.image)
    images = [load_image(str(path)) for path in paths]  # first: a missing file fails at once
    model = revision.load(cfg.model)
    model.template = cfg.template or model.template
    answer = model.answer(images, str(cfg.prompt), max_new_tokens=cfg.max_new_tokens)
    print(answer)
    return answer


main = entry(run, "generate")

if __name__ == "__main__":
    main()
