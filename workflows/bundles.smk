# On demand: snakemake bundles. What a device needs of a model, in one file in dist/, whose name holds its digest; so
# the rule's output is a small file that names it, and dag.configure drops that where the bundle itself is gone.


rule bundles:
    input:
        expand("targets/{target}/{model}/bundle.json", target=CONFIG.targets, model=CONFIG.models),


for name, forms, models in dag.exports(CONFIG):
    target = CONFIG.targets[name]
    folder = f"targets/{name}/{{model}}"
    int8 = {"quantized": "artifacts/{model}/quantized.pt2"} if "quantized" in forms else {}

    rule:
        name:
            f"bundle_{'_'.join([name, *forms])}"
        input:
            **int8,
            files=[f"{folder}/{file}" for file in backends.file_names(target.backend, forms[:1])],
            manifest=f"{folder}/manifest.json",
            check=f"{folder}/check.json",
            fused="artifacts/{model}/fused.pt2",
            split="artifacts/split.json",
        output:
            f"{folder}/bundle.json",
        log:
            f"logs/{{model}}/{name}/bundle.log",
        wildcard_constraints:
            model="|".join(models),
        params:
            settings=dag.settings(CONFIG, "bundle", name),
            quantized="--quantized artifacts/{model}/quantized.pt2" if int8 else "",
            code=store.code_digest("pipeline.bundle", f"pipeline.backends.{target.backend}"),
            texts=dag.shipped_texts(target.backend),
        message:
            f"packing {{wildcards.model}} for {name} into dist/"
        shell:
            "python -m pipeline.bundle --settings {params.settings:q} --manifest {input.manifest} --check {input.check}"
            " --files {input.files} --fused {input.fused} --split {input.split} --dist dist --output {output}"
            " {params.quantized} > {log} 2>&1"
