# What was measured: one file a target over its models, and one table over everything.


rule summarize:
    input:
        expand("targets/{{target}}/{model}/bench.json", model=CONFIG.models),
    output:
        "targets/{target}/bench.json",
    log:
        "logs/{target}/summarize.log",
    params:
        settings=dag.settings(CONFIG, "summarize"),
        code=store.code_digest("pipeline.summarize"),
    message:
        "summing up the models of {wildcards.target}"
    shell:
        "python -m pipeline.summarize --settings {params.settings:q} --benches {input} --output {output} > {log} 2>&1"


rule report:
    input:
        expand("targets/{target}/bench.json", target=CONFIG.targets),
    output:
        "report.md",
    log:
        "logs/report.log",
    params:
        settings=dag.settings(CONFIG, "report"),
        code=store.code_digest("pipeline.report"),
    message:
        "what was built, and what was gained"
    shell:
        "python -m pipeline.report --settings {params.settings:q} --benches {input} --output {output} > {log} 2>&1"
        " && cat {output}"
