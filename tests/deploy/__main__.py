"""Renders, checks and lints, and prints what each recipe was checked against."""

import sys
from pathlib import Path

import yaml

from tests.deploy import names, recipes, rules, schemas, targets, tools


def texts() -> dict[str, str]:
    """Read every file of deploy/."""
    files = (file for file in sorted(recipes.DEPLOY.rglob("*")) if file.is_file())
    return {str(file.relative_to(recipes.DEPLOY)): file.read_text() for file in files}


def commands() -> dict[str, str]:
    """Read every file that may have commands in it: those of deploy/, the README and docs/."""
    files = [tools.ROOT / "README.md", *sorted((tools.ROOT / "docs").glob("*.md"))]
    files += [file for file in sorted(recipes.DEPLOY.rglob("*")) if file.is_file()]
    return {str(file.relative_to(tools.ROOT)): file.read_text() for file in files}


def main() -> int:
    """Check everything, and print every fault at once."""
    try:
        tools.prepare()
        found = _faults()
    except tools.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    for fault in found:
        print(fault, file=sys.stderr)
    print(f"{len(found)} faults" if found else "no fault")
    return 1 if found else 0


def _faults() -> list[str]:
    found = tools.lint()
    print("hadolint: Dockerfile; actionlint: .github/workflows; zizmor: .github")
    print(f"schemas of Istio's chart and the controller: {_presence(schemas.SCHEMAS)}")
    rendered = recipes.all_recipes()
    of_ways = names.ways(rendered)
    service = targets.service_of(next(recipe for recipe in rendered if recipe.complete))
    for recipe in rendered:
        found += [*schemas.kubernetes(recipe), *schemas.custom(recipe), *rules.faults(recipe)]
        found += [*names.object_faults(recipe, of_ways), *targets.faults(recipe, service)]
        print(f"{recipe.name:<50}{_checked(recipe)}")
    print(f"the target groups that the controller builds:\n{targets.table(service)}")
    found += targets.file_faults()
    for kind in ("native", "drain"):
        found += schemas.chart(f"helm/values-{kind}.yaml", recipes.values(kind))
    read = texts()
    found += rules.text_faults(read)
    found += names.text_faults(commands(), of_ways)
    compose, envoy = (yaml.safe_load(read[f"local/{name}.yaml"]) for name in ("compose", "envoy"))
    found += rules.compose_faults(compose, envoy)
    objects = sum(len(recipe.objects) for recipe in rendered)
    print(f"{len(rendered)} recipes, {objects} objects, {len(of_ways)} ways to install a gateway")
    return found


def _checked(recipe: recipes.Recipe) -> str:
    """Return what a recipe was checked against."""
    kinds = {thing["kind"]: schemas.is_custom(thing) for thing in recipe.objects}
    parts = []
    if own := [kind for kind, is_custom in kinds.items() if not is_custom]:
        versions = schemas.versions(recipe.oldest)
        parts.append(f"Kubernetes {versions[0]} to {versions[-1]}: {', '.join(own)}")
    if custom := [kind for kind, is_custom in kinds.items() if is_custom]:
        parts.append(f"its definition, if at hand: {', '.join(custom)}")
    return "; ".join(parts)


def _presence(folder: Path) -> str:
    return "checked against" if folder.is_dir() else f"not at hand ({folder})"


if __name__ == "__main__":
    sys.exit(main())
