// Every text of the page that a reader sees, whose contrast with what lies behind it is
// below the least allowed (WCAG 2's ratio). Returns [[ratio, text, colour, ground], …].
(least) => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [r / 255, g / 255, b / 255], alpha: a };
  };
  const clamp = (x) => Math.min(1, Math.max(0, x));
  // The pages' dark theme is a filter, of which computed colours know nothing.
  const filters = {
    invert: (c, by) => c.map((x) => clamp(x * (1 - 2 * by) + by)),
    "hue-rotate": ([r, g, b]) =>
      [
        -0.574 * r + 1.43 * g + 0.144 * b,
        0.426 * r + 0.43 * g + 0.144 * b,
        0.426 * r + 1.43 * g - 0.856 * b,
      ].map(clamp),
  };
  const filtered = (colour, element) => {
    for (let e = element; e; e = e.parentElement)
      for (const [, name, value] of getComputedStyle(e).filter.matchAll(/([\w-]+)\(([\d.]+)/g))
        colour = filters[name](colour, Number(value));
    return colour;
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const layer = parse(getComputedStyle(e).backgroundColor);
      if (layer.alpha) layers.push([layer, e]);
      if (layer.alpha === 1) break;
    }
    let under = [1, 1, 1];
    for (const [layer, e] of layers.reverse()) {
      const over = filtered(layer.rgb, e);
      under = under.map((u, i) => over[i] * layer.alpha + u * (1 - layer.alpha));
    }
    return under;
  };
  const light = (c) => {
    const [r, g, b] = c.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility({ visibilityProperty: true })) continue;
    const { rgb, alpha } = parse(getComputedStyle(element).color);
    const behind = ground(element);
    const front = filtered(rgb, element).map((x, i) => x * alpha + behind[i] * (1 - alpha));
    const [low, high] = [light(front), light(behind)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const shown = (c) => c.map((x) => Math.round(x * 255)).join(" ");
    const key = shown(front) + "/" + shown(behind);
    if (ratio < least && !seen.has(key))
      seen.set(key, [ratio.toFixed(2), text.slice(0, 40), shown(front), shown(behind)]);
  }
  return [...seen.values()];
}
