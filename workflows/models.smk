# Once a model: trained (or the user's checkpoint adopted), its batch norms recalibrated if wanted, fused, proved.

ADOPTED = {name: model.checkpoint for name, model in CONFIG.models.items() if model.checkpoint}
TRAINED = [name for name in CONFIG.models if name not in ADOPTED]

PRIORITY = jobs.priority(CONFIG)
network, weights = jobs.network(CONFIG), jobs.checkpoint(CONFIG)


rule split:
    output:
        "artifacts/split.json",
    log:
        "logs/split.log",
    params:
        name=CONFIG.data.name,
        settings=jobs.settings(CONFIG, "split"),
        sources=splits.listing(CONFIG.data.name, CONFIG.data.root, CONFIG.data.classes),
        code=digests.code_digest("pipeline.stages.split", *own_code.modules(CONFIG.data.task)),
    message:
        "reading {params.name}, and fixing what is held out for validation"
    shell:
        "python -m pipeline split --settings {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule train:
    input:
        split=jobs.split(workflow),
    output:
        checkpoint="artifacts/{model}/checkpoint.safetensors",
        metrics="artifacts/{model}/metrics.jsonl",
    log:
        "logs/{model}/train.log",
    wildcard_constraints:
        model="|".join(TRAINED) or "(?!)",
    priority: PRIORITY
    threads: os.cpu_count() or 1
    # alone: two networks that train on the same cores wait for each other at every layer, ten times slower
    resources:
        machine=100,
    params:
        settings=jobs.settings(CONFIG, "train"),
        code=digests.code_digest("pipeline.stages.train"),
        network=network,
    message:
        "training {wildcards.model}; an epoch a line in {log}"
    shell:
        "python -m pipeline train --settings {params.settings:q} --split {input.split:q}"
        " --checkpoint {output.checkpoint:q} --metrics {output.metrics:q} > {log:q} 2>&1"


rule adopt:
    input:
        source=lambda wildcards: ADOPTED[wildcards.model],
        split=jobs.split(workflow),
    output:
        checkpoint="artifacts/{model}/checkpoint.safetensors",
    log:
        "logs/{model}/adopt.log",
    wildcard_constraints:
        model="|".join(ADOPTED) or "(?!)",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "adopt"),
        content=lambda wildcards: digests.digest(Path(ADOPTED[wildcards.model])),
        code=digests.code_digest("pipeline.stages.adopt"),
        network=network,
    message:
        "reading {input.source} as {wildcards.model}"
    shell:
        "python -m pipeline adopt --settings {params.settings:q} --source {input.source:q} --split {input.split:q}"
        " --checkpoint {output.checkpoint:q} > {log:q} 2>&1"


rule recalibrate:
    input:
        checkpoint="artifacts/{model}/checkpoint.safetensors",
        split="artifacts/split.json",
    output:
        checkpoint="artifacts/{model}/recalibrated.safetensors",
    log:
        "logs/{model}/recalibrate.log",
    wildcard_constraints:
        model="|".join(name for name, model in CONFIG.models.items() if model.recalibrate_bn) or "(?!)",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "recalibrate"),
        code=digests.code_digest("pipeline.stages.recalibrate"),
        network=network,
    message:
        "estimating the batch norms' statistics of {wildcards.model} from training images"
    shell:
        "python -m pipeline recalibrate --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --split {input.split:q} --output {output.checkpoint:q} > {log:q} 2>&1"


rule reparameterize:
    input:
        checkpoint=weights,
        split="artifacts/split.json",
    output:
        fused="artifacts/{model}/fused.pt2",
        report="artifacts/{model}/fuse.json",
    log:
        "logs/{model}/reparameterize.log",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "reparameterize"),
        code=digests.code_digest("pipeline.stages.reparameterize"),
        network=network,
    message:
        "fusing {wildcards.model}, and what int8 would do to it"
    shell:
        "python -m pipeline reparameterize --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --split {input.split:q} --fused {output.fused:q} --report {output.report:q} > {log:q} 2>&1"


rule verify:
    input:
        checkpoint=weights,
        split="artifacts/split.json",
        fused="artifacts/{model}/fused.pt2",
    output:
        "artifacts/{model}/verify.json",
    log:
        "logs/{model}/verify.log",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "verify"),
        code=digests.code_digest("pipeline.stages.verify"),
        network=network,
    message:
        "proving that fusing {wildcards.model} changed nothing"
    shell:
        "python -m pipeline verify --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --split {input.split:q} --fused {input.fused:q} --output {output:q} > {log:q} 2>&1"
