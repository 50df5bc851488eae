# Once a target and model: the files are exported, checked and timed. The names of the files depend on the
# target's backend and on the forms that it exports of a model, so each target has rules of its own, and one set more
# for models that came folded; a folder with a target.yaml is all it takes. What a target of `precision: auto` chooses
# from is exported and checked alike, candidate by candidate; then they race, instead of a benchmark.

for made in jobs.exports(CONFIG):
    name, folder, files = made.target, made.folder, made.files
    target = CONFIG.targets[name]
    backend = backends.module_name(target.backend)
    alone = jobs.is_measured_here(CONFIG, name)
    int8 = made.inputs
    quantized = ["--quantized", "artifacts/{model}/quantized.pt2"] if int8 else []
    shown = f"{name} in {made.candidate}" if made.candidate else name

    rule:
        name:
            f"export_{made.name}"
        input:
            **int8,
            checkpoint=weights,
            fused="artifacts/{model}/fused.pt2",
            verify="artifacts/{model}/verify.json",
        output:
            [directory(file) if file.endswith(".mlpackage") else file for file in files],
            manifest=f"{folder}/manifest.json",
        log:
            f"{made.logs}/export.log",
        wildcard_constraints:
            model="|".join(made.models),
        priority: jobs.priority(CONFIG, name)
        params:
            settings=jobs.settings(CONFIG, "export", name, made.candidate),
            quantized=quantized,
            code=digests.code_digest("pipeline.stages.export", backend),
            network=network,
        message:
            f"exporting {{wildcards.model}} for {shown}"
        shell:
            "python -m pipeline export --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
            " --fused {input.fused:q} --verify {input.verify:q} --manifest {output.manifest:q}"
            " {params.quantized:q} > {log:q} 2>&1"

    rule:
        name:
            f"check_{made.name}"
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
            f"{made.logs}/check.log",
        wildcard_constraints:
            model="|".join(made.models),
        priority: jobs.priority(CONFIG, name)
        params:
            settings=jobs.settings(CONFIG, "check", name, made.candidate),
            quantized=quantized,
            code=digests.code_digest("pipeline.stages.check", "pipeline.backends.worker.client", backend),
        message:
            f"checking the {shown} files of {{wildcards.model}}"
        shell:
            "python -m pipeline check --settings {params.settings:q} --manifest {input.manifest:q}"
            " --files {input.files:q} --fused {input.fused:q} --verify {input.verify:q} --split {input.split:q}"
            " --output {output:q} {params.quantized:q} > {log:q} 2>&1"

    if made.candidate:
        continue

    rule:
        name:
            f"bench_{made.name}"
        input:
            **int8,
            files=files,
            manifest=f"{folder}/manifest.json",
            check=f"{folder}/check.json",
            fused="artifacts/{model}/fused.pt2",
            reference=jobs.reference(CONFIG, name),
        output:
            bench=f"{folder}/bench.json",
            profile=f"{folder}/profile.json",
        log:
            f"{made.logs}/bench.log",
        wildcard_constraints:
            model="|".join(made.models),
        priority: jobs.priority(CONFIG, name)
        threads: max(target.bench.threads) if alone else 1
        resources:
            machine=100 if alone else 1,
        params:
            settings=jobs.settings(CONFIG, "bench", name),
            quantized=quantized,
            reference=lambda _, input: ["--reference", input.reference] if input.reference else [],
            code=digests.code_digest("pipeline.stages.bench", backend),
        message:
            f"timing {{wildcards.model}} on {name}, {'alone on the machine' if alone else 'whose runtime is not here'}"
        shell:
            "python -m pipeline bench --settings {params.settings:q} --manifest {input.manifest:q}"
            " --check {input.check:q} --files {input.files:q} --fused {input.fused:q} --output {output.bench:q}"
            " --profile {output.profile:q} {params.quantized:q} {params.reference:q} > {log:q} 2>&1"


for name, candidates in jobs.races(CONFIG).items():
    target = CONFIG.targets[name]
    alone = jobs.is_measured_here(CONFIG, name)
    int8 = [file for made in candidates for file in made.inputs.values()]

    rule:
        name:
            f"race_{name}"
        input:
            files=[file for made in candidates for file in made.files],
            manifests=[f"{made.folder}/manifest.json" for made in candidates],
            checks=[f"{made.folder}/check.json" for made in candidates],
            fused="artifacts/{model}/fused.pt2",
            quantized=int8,
            report=["artifacts/{model}/quantize.json"] if int8 else [],
        output:
            bench=f"targets/{name}/{{model}}/bench.json",
            profile=f"targets/{name}/{{model}}/profile.json",
            chosen=directory(f"targets/{name}/{{model}}/chosen"),
        log:
            f"logs/{{model}}/{name}/race.log",
        priority: jobs.priority(CONFIG, name)
        threads: max(target.bench.threads) if alone else 1
        resources:
            machine=100 if alone else 1,
        params:
            settings=jobs.settings(CONFIG, "race", name),
            int8=(
                ["--quantized", "artifacts/{model}/quantized.pt2", "--report", "artifacts/{model}/quantize.json"]
                if int8
                else []
            ),
            code=digests.code_digest("pipeline.stages.race", backends.module_name(target.backend)),
        message:
            f"choosing the precision of {{wildcards.model}} on {name}"
        shell:
            "python -m pipeline race --settings {params.settings:q} --manifests {input.manifests:q}"
            " --checks {input.checks:q} --files {input.files:q} --fused {input.fused:q} --output {output.bench:q}"
            " --profile {output.profile:q} --chosen {output.chosen:q} {params.int8:q} > {log:q} 2>&1"
