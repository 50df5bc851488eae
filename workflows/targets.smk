# Once a target and model: the files are exported, checked and timed. The names of the files depend on the
# target's backend and on the forms that it exports of a model, so each target has rules of its own, and one set more
# for models that came folded; a folder with a target.yaml is all it takes.

for name, forms, models in dag.exports(CONFIG):
    target = CONFIG.targets[name]
    backend = f"pipeline.backends.{target.backend}"
    folder = f"targets/{name}/{{model}}"
    files = [f"{folder}/{file}" for file in backends.file_names(target.backend, forms)]
    rule_of = "_".join([name, *forms])
    int8 = {"quantized": "artifacts/{model}/quantized.pt2"} if "quantized" in forms else {}
    quantized = "--quantized artifacts/{model}/quantized.pt2" if int8 else ""

    rule:
        name:
            f"export_{rule_of}"
        input:
            **int8,
            checkpoint=weights,
            fused="artifacts/{model}/fused.pt2",
            verify="artifacts/{model}/verify.json",
        output:
            [directory(file) if file.endswith(".mlpackage") else file for file in files],
            manifest=f"{folder}/manifest.json",
        log:
            f"logs/{{model}}/{name}/export.log",
        wildcard_constraints:
            model="|".join(models),
        params:
            settings=dag.settings(CONFIG, "export", name),
            quantized=quantized,
            code=store.code_digest("pipeline.export", backend),
            network=network,
        message:
            f"exporting {{wildcards.model}} for {name}"
        shell:
            "python -m pipeline.export --settings {params.settings:q} --checkpoint {input.checkpoint}"
            " --fused {input.fused} --verify {input.verify} --manifest {output.manifest}"
            " {params.quantized} > {log} 2>&1"

    rule:
        name:
            f"check_{rule_of}"
        input:
            **int8,
            files=files,
            manifest=f"{folder}/manifest.json",
            fused="artifacts/{model}/fused.pt2",
            verify="artifacts/{model}/verify.json",
            split="artifacts/split.json",
        output:
            f"{folder}/check.json",
        log:
            f"logs/{{model}}/{name}/check.log",
        wildcard_constraints:
            model="|".join(models),
        params:
            settings=dag.settings(CONFIG, "check", name),
            quantized=quantized,
            code=store.code_digest("pipeline.check", "pipeline.worker", backend),
        message:
            f"checking the {name} files of {{wildcards.model}}"
        shell:
            "python -m pipeline.check --settings {params.settings:q} --manifest {input.manifest} --files {input.files}"
            " --fused {input.fused} --verify {input.verify} --split {input.split} --output {output}"
            " {params.quantized} > {log} 2>&1"

    rule:
        name:
            f"bench_{rule_of}"
        input:
            **int8,
            files=files,
            manifest=f"{folder}/manifest.json",
            check=f"{folder}/check.json",
            fused="artifacts/{model}/fused.pt2",
            checkpoint=weights,
        output:
            bench=f"{folder}/bench.json",
            profile=f"{folder}/profile.json",
        log:
            f"logs/{{model}}/{name}/bench.log",
        wildcard_constraints:
            model="|".join(models),
        threads: max(target.bench.threads)
        resources:
            machine=100,
        params:
            settings=dag.settings(CONFIG, "bench", name),
            quantized=quantized,
            code=store.code_digest("pipeline.bench", "pipeline.backends.onnx", "pipeline.backends.executorch", backend),
            network=network,
        message:
            f"timing {{wildcards.model}} on {name}, alone on the machine"
        shell:
            "python -m pipeline.bench --settings {params.settings:q} --manifest {input.manifest} --check {input.check}"
            " --files {input.files} --fused {input.fused} --checkpoint {input.checkpoint}"
            " --output {output.bench} --profile {output.profile} {params.quantized} > {log} 2>&1"
