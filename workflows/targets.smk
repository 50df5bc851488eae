# Once a target and model: the files are exported, checked and timed. The names of the files depend on the
# target's backend and forms, so each target has rules of its own; a folder with a target.yaml is all it takes.

for name, target in CONFIG.targets.items():
    backend = f"pipeline.backends.{target.backend}"
    folder = f"targets/{name}/{{model}}"
    files = [f"{folder}/{file}" for file in backends.file_names(target.backend, target.forms)]

    rule:
        name:
            f"export_{name}"
        input:
            checkpoint=weights,
            fused="artifacts/{model}/fused.pt2",
            verify="artifacts/{model}/verify.json",
        output:
            [directory(file) if file.endswith(".mlpackage") else file for file in files],
            manifest=f"{folder}/manifest.json",
        log:
            f"logs/{{model}}/{name}/export.log",
        params:
            settings=dag.settings(CONFIG, "export", name),
            code=store.code_digest("pipeline.export", backend),
            network=network,
        message:
            f"exporting {{wildcards.model}} for {name}"
        shell:
            "python -m pipeline.export --settings {params.settings:q} --checkpoint {input.checkpoint}"
            " --fused {input.fused} --verify {input.verify} --manifest {output.manifest} > {log} 2>&1"

    rule:
        name:
            f"check_{name}"
        input:
            files=files,
            manifest=f"{folder}/manifest.json",
            fused="artifacts/{model}/fused.pt2",
            verify="artifacts/{model}/verify.json",
            split="artifacts/split.json",
        output:
            f"{folder}/check.json",
        log:
            f"logs/{{model}}/{name}/check.log",
        params:
            settings=dag.settings(CONFIG, "check", name),
            code=store.code_digest("pipeline.check", "pipeline.worker", backend),
        message:
            f"checking the {name} files of {{wildcards.model}}"
        shell:
            "python -m pipeline.check --settings {params.settings:q} --manifest {input.manifest} --files {input.files}"
            " --fused {input.fused} --verify {input.verify} --split {input.split} --output {output} > {log} 2>&1"

    rule:
        name:
            f"bench_{name}"
        input:
            files=files,
            manifest=f"{folder}/manifest.json",
            check=f"{folder}/check.json",
            fused="artifacts/{model}/fused.pt2",
            checkpoint=weights,
        output:
            f"{folder}/bench.json",
        log:
            f"logs/{{model}}/{name}/bench.log",
        threads: target.bench.threads
        resources:
            machine=100,
        params:
            settings=dag.settings(CONFIG, "bench", name),
            code=store.code_digest("pipeline.bench", "pipeline.backends.onnx", backend),
            network=network,
        message:
            f"timing {{wildcards.model}} on {name}, alone on the machine"
        shell:
            "python -m pipeline.bench --settings {params.settings:q} --manifest {input.manifest} --check {input.check}"
            " --files {input.files} --fused {input.fused} --checkpoint {input.checkpoint}"
            " --output {output} > {log} 2>&1"
