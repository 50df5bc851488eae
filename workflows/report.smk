# What people look at: what was measured, one file a target over its models and one table over everything; and pictures.


rule summarize:
    input:
        expand("targets/{{target}}/{model}/bench.json", model=CONFIG.models),
    output:
        "targets/{target}/bench.json",
    log:
        "logs/{target}/summarize.log",
    params:
        settings=jobs.settings(CONFIG, "summarize"),
        code=digests.code_digest("pipeline.stages.summarize"),
    message:
        "summing up the models of {wildcards.target}"
    shell:
        "python -m pipeline summarize --settings {params.settings:q} --benches {input:q}"
        " --output {output:q} > {log:q} 2>&1"


# The table of one model, on the terminal as soon as its targets are done, while others are in work.
rule preview:
    input:
        expand("targets/{target}/{{model}}/bench.json", target=CONFIG.targets),
    output:
        "artifacts/{model}/report.md",
    log:
        "logs/{model}/report.log",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "report"),
        code=digests.code_digest("pipeline.stages.report"),
    message:
        "what was gained for {wildcards.model}"
    shell:
        "python -m pipeline report --settings {params.settings:q} --benches {input:q}"
        " --output {output:q} > {log:q} 2>&1"
        " && sed '1,/^## /!d;/^## /d' {output:q}"


# Pictures are on demand (below); those that are there are on the page.
rule report:
    input:
        **jobs.documents_of_report(CONFIG),
        pictures=lambda _: jobs.pictures(CONFIG),
    output:
        text="report.md",
        page=report("report.html", category="repnets"),
    log:
        "logs/report.log",
    params:
        settings=jobs.settings(CONFIG, "report"),
        options=jobs.options_of_report,
        code=digests.code_digest("pipeline.stages.report"),
    message:
        "what was built, and what was gained"
    shell:
        "python -m pipeline report --settings {params.settings:q} {params.options:q}"
        " --output {output.text:q} --page {output.page:q} > {log:q} 2>&1"
        " && cat {output.text:q}"


# on demand: snakemake artifacts/<model>/structure.svg
rule draw:
    input:
        checkpoint=weights,
    output:
        structure="artifacts/{model}/structure.svg",
        block="artifacts/{model}/block.svg",
    log:
        "logs/{model}/draw.log",
    params:
        settings=jobs.settings(CONFIG, "draw"),
        code=digests.code_digest("pipeline.stages.draw"),
        network=network,
    message:
        "drawing {wildcards.model} before and after fusing"
    shell:
        "python -m pipeline draw --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --structure {output.structure:q} --block {output.block:q} > {log:q} 2>&1"


# on demand: snakemake artifacts/<model>/samples.png
HAS_INT8 = any(target.precision == "int8" for target in CONFIG.targets.values())


rule samples:
    input:
        checkpoint=weights,
        split="artifacts/split.json",
        fused="artifacts/{model}/fused.pt2",
        quantized="artifacts/{model}/quantized.pt2" if HAS_INT8 else [],
    output:
        "artifacts/{model}/samples.png",
    log:
        "logs/{model}/samples.log",
    params:
        settings=jobs.settings(CONFIG, "samples"),
        quantized=["--quantized", "artifacts/{model}/quantized.pt2"] if HAS_INT8 else [],
        code=digests.code_digest("pipeline.stages.samples"),
        network=network,
    message:
        "drawing what {wildcards.model} gives for some images"
    shell:
        "python -m pipeline samples --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --split {input.split:q} --fused {input.fused:q} {params.quantized:q} --output {output:q} > {log:q} 2>&1"
