# On demand: snakemake bundles. What a device needs of a model, in one file in dist/, whose name holds its digest; so
# the rule's output is a small file that names it; where the bundle itself is gone, jobs.split says that it is missing.


rule bundles:
    input:
        expand("targets/{target}/{model}/bundle.json", target=CONFIG.targets, model=CONFIG.models),
    # the default is the size of the inputs, of which a damaged one counts as missing
    resources:
        mem_mb=0,
        disk_mb=0,


for name, target in CONFIG.targets.items():
    exported = CONFIG.exported(name)
    place = f"targets/{name}/{{model}}"
    if name in CONFIG.candidates:  # what the race chose is in a folder with its manifest.json and check.json
        shipped = {"files": f"{place}/chosen"}
    else:
        files = backends.file_names(target.backend, target.forms[:1])
        shipped = {one: f"{place}/{one}.json" for one in ("manifest", "check")}
        shipped["files"] = [f"{place}/{file}" for file in files]
    is_int8 = any(one.precision == "int8" for one in exported)

    rule:
        name:
            f"bundle_{name}"
        input:
            **shipped,
            fused="artifacts/{model}/fused.pt2",
            quantized="artifacts/{model}/quantized.pt2" if is_int8 else [],
            split="artifacts/split.json",
        output:
            f"targets/{name}/{{model}}/bundle.json",
        log:
            f"logs/{{model}}/{name}/bundle.log",
        params:
            settings=jobs.settings(CONFIG, "bundle", name),
            exported=jobs.exported_files,
            quantized=["--quantized", "artifacts/{model}/quantized.pt2"] if is_int8 else [],
            code=digests.code_digest("pipeline.stages.bundle", backends.module_name(target.backend)),
            texts=jobs.shipped_texts(target.backend),
        message:
            f"packing {{wildcards.model}} for {name} into dist/"
        shell:
            "python -m pipeline bundle --settings {params.settings:q} {params.exported:q} --fused {input.fused:q}"
            " --split {input.split:q} --dist dist --output {output:q} {params.quantized:q} > {log:q} 2>&1"
