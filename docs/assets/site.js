// What keyboards and screen readers need and the theme leaves out: names, and focus for code and tables that scroll.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  const mend = () => {
    document.querySelectorAll("pre > code:not([tabindex]), .md-typeset__scrollwrap:not([tabindex])").forEach((box) => box.setAttribute("tabindex", "0"));
    document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((nav, index) => {
      nav.setAttribute("aria-label", `Code block ${nav.closest("pre")?.id || index}`);
    });
  };
  const changes = { attributeFilter: ["tabindex"], childList: true, subtree: true };
  new MutationObserver(mend).observe(document.body, changes);
  mend();
});
