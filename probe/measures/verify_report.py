"""What `verify` returns: each promise with what was measured, and a block for an appendix."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One promise: what was measured, what was promised, whether it was kept."""

    name: str
    value: float | str
    expected: str
    passed: bool

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> "Check":
        return cls(name, value, f"at most {bound:g}", value <= bound)


@dataclass(frozen=True)
class Report:
    """All checks of one subject, and what a paper has to state about them."""

    checks: list[Check]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def appendix(self) -> str:
        """Plain text: how the attention was measured, on what, and how exact it was."""
        about = self.provenance
        packages = ("probe", "transformers", "torch")
        versions = ", ".join(f"{name} {about[f'{name}_version']}" for name in packages)
        setting = ", ".join(about[name] for name in ("weights", "dtype", "device"))
        lines = [
            f"Attention was measured with {versions} on {about['model']} ({setting}),",
            f"while the model ran its own {about['attention']} kernel; images: {about['aspect']}.",
        ]
        for check in self.checks:
            value = check.value if isinstance(check.value, str) else f"{check.value:.2g}"
            lines.append(f"  {check.name}: {value} (promised: {check.expected})")
        return "\n".join(lines)


def in_bytes(n: float) -> str:
    """A number of bytes in the unit that fits."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
