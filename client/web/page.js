// The viewer's controls. Gradio replaces the viewer with every result, so that events are taken at the document.
(() => {
  const UNITS = { zoom: " ×" };
  const control = (viewer, name) => viewer.querySelector(`input[name=${name}]`);

  function move(viewer, name, value) {
    const input = control(viewer, name);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function zoom(viewer, value) {
    const frame = viewer.querySelector(".frame");
    const ratio = value / (viewer.style.getPropertyValue("--zoom") || 1);
    const x = frame.scrollLeft + frame.clientWidth / 2, y = frame.scrollTop + frame.clientHeight / 2;
    viewer.style.setProperty("--zoom", value);
    frame.scrollTo(x * ratio - frame.clientWidth / 2, y * ratio - frame.clientHeight / 2); // the center stays
  }

  async function load(picture, address) {
    const next = picture.cloneNode();
    next.src = address;
    await next.decode();
    picture.replaceWith(next);
  }

  // one request at a time, always for the latest window
  async function applyWindow(viewer) {
    viewer.wanted = `?center=${control(viewer, "center").value}&width=${control(viewer, "width").value}`;
    if (viewer.loading) return;
    viewer.loading = true;
    try {
      for (let shown; shown !== viewer.wanted; ) {
        shown = viewer.wanted;
        const pictures = [...viewer.querySelectorAll("img[data-layer]")];
        await Promise.all(pictures.map((p) => load(p, `${viewer.dataset.address}/${p.dataset.layer}.png${shown}`)));
        viewer.dataset.shown = shown;
      }
      viewer.querySelector(".problem").textContent = "";
    } catch {
      viewer.querySelector(".problem").textContent =
        "The page no longer has this image, or is not running: drop the image again.";
    } finally {
      viewer.loading = false;
    }
  }

  document.addEventListener("input", ({ target }) => {
    const viewer = target.closest(".viewer");
    if (!viewer) return;
    target.previousElementSibling.textContent = target.value + (UNITS[target.name] ?? " %");
    if (target.name === "cut") viewer.style.setProperty("--cut", `${target.value}%`);
    else if (target.name === "zoom") zoom(viewer, target.value);
    else if (target.name === "doubt") {
      viewer.style.setProperty("--doubt", target.value / 100);
      viewer.querySelector(".legend").hidden = target.value === "0";
    } else applyWindow(viewer);
  });

  document.addEventListener("click", ({ target }) => {
    if (target.name !== "reset") return;
    const viewer = target.closest(".viewer");
    for (const input of viewer.querySelectorAll("input")) move(viewer, input.name, input.defaultValue);
  });

  // an error may be told while its place is out of sight
  new MutationObserver(() => {
    const alert = document.querySelector("#state [role=alert]:not([data-seen])");
    if (!alert) return;
    alert.dataset.seen = "";
    alert.scrollIntoView({ block: "center" });
  }).observe(document, { childList: true, subtree: true });

  document.addEventListener("pointerdown", (event) => {
    const line = event.target.closest?.(".viewer .line");
    if (!line) return;
    event.preventDefault();
    line.setPointerCapture(event.pointerId);
    const viewer = line.closest(".viewer");
    line.onpointermove = ({ clientX }) => {
      const { left, width } = line.parentElement.getBoundingClientRect();
      move(viewer, "cut", (100 * (clientX - left)) / width);
    };
    line.onpointerup = line.onpointercancel = () => (line.onpointermove = null);
  });
})();
