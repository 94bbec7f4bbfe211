"use strict";
(function () {
  const data = JSON.parse(document.getElementById("clips").textContent);
  const clips = data.rows.map(row => Object.fromEntries(data.columns.map((name, place) => [name, row[place]])));
  const pictures = new Map([...document.querySelectorAll("img[data-clip]")].map(image => [Number(image.dataset.clip), image.src]));
  const find = id => document.getElementById(id);
  const PER_PAGE = 50;
  const number = (value, digits) => value === null ? "" : String(Number(value.toFixed(digits)));
  const columns = [
    ["number", "Clip", clip => "#" + clip.number, "figure number"],
    ["name", "Name and caption", null, "wide"],
    ["status", "State", null, "wide"],
    ["width", "Size", clip => clip.width === null ? "" : clip.width + " × " + clip.height, "figure"],
    ["aspect", "Aspect", clip => number(clip.aspect, 2), "figure"],
    ["fps", "fps", clip => number(clip.fps, 2), "figure"],
    ["seconds", "Seconds", clip => number(clip.seconds, 2), "figure"],
    ["bucket", "Bucket", clip => clip.bucket || "", "figure"],
    ["kept", "Crop keeps", clip => clip.kept === null ? "" : number(100 * clip.kept, 1) + " %", "figure"],
    ["effective_fps", "Effective fps", clip => number(clip.effective_fps, 2), "figure"],
    ["motion", "Motion", clip => number(clip.motion, 2), "figure"],
    clips.some(clip => clip.tokens !== null) ? ["tokens", "Tokens", clip => number(clip.tokens, 0), "figure"]
      : ["words", "Words", clip => number(clip.words, 0), "figure"],
  ];
  let shown = clips, page = 0, key = "number", up = true;

  function element(tag, content, kind) {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content;
    if (kind) made.className = kind;
    return made;
  }

  function fill(id, values) {
    for (const [value, count] of [...values].sort((one, other) => String(one[0]).localeCompare(String(other[0]), "en", { numeric: true })))
      find(id).append(new Option(value + " (" + count + ")", value));
  }

  function count(values) {
    const found = new Map();
    for (const value of values) if (value !== null && value !== "") found.set(value, (found.get(value) || 0) + 1);
    return found;
  }

  function apply() {
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = Object.fromEntries(["finding", "status", "part", "bucket"].map(id => [id, find(id).value]));
    shown = clips.filter(clip => (!wanted.finding || clip.findings.includes(wanted.finding))
      && ["status", "part", "bucket"].every(name => !wanted[name] || clip[name] === wanted[name])
      && words.every(word => (clip.name + " " + clip.caption).toLowerCase().includes(word)));
    const sign = up ? 1 : -1;
    shown.sort((one, other) => {
      const a = one[key], b = other[key];
      if (a === null || b === null) return (a === null) - (b === null) || one.number - other.number;
      const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return sign * order || one.number - other.number;
    });
    page = 0;
    draw();
  }

  function nameCell(clip) {
    const cell = element("td", undefined, "wide named");
    if (pictures.has(clip.number)) {
      const image = element("img");
      image.src = pictures.get(clip.number);
      image.alt = clip.caption || clip.name;
      cell.append(image);
    }
    const text = element("div");
    text.append(element("div", clip.name, "clip-name"), element("div", clip.caption, "caption"));
    cell.append(text);
    return cell;
  }

  function statusCell(clip) {
    const cell = element("td", undefined, "wide");
    cell.append(element("span", clip.status, "pill " + (clip.status === "used" ? "used" : "out")));
    for (const kind of clip.findings) cell.append(element("span", kind, "pill"));
    if (clip.why) cell.append(element("div", clip.why, "caption"));
    return cell;
  }

  function draw() {
    const last = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    const body = find("clip-table").tBodies[0];
    body.replaceChildren(...shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(clip => {
      const row = element("tr");
      for (const [name, title, text, kind] of columns) {
        const cell = name === "name" ? nameCell(clip) : name === "status" ? statusCell(clip) : element("td", text(clip), kind);
        cell.dataset.label = title;
        row.append(cell);
      }
      return row;
    }));
    find("how-many").textContent = shown.length + " of " + clips.length + " clips";
    find("where").textContent = "page " + (page + 1) + " of " + last;
    find("before").disabled = page === 0;
    find("after").disabled = page + 1 >= last;
    find("direction").textContent = up ? "↑ up" : "↓ down";
    find("sort").value = key;
    for (const head of find("clip-table").tHead.rows[0].cells)
      head.setAttribute("aria-sort", head.dataset.key === key ? (up ? "ascending" : "descending") : "none");
  }

  const heads = element("tr");
  for (const [name, title, , kind] of columns) {
    const head = element("th", undefined, kind.startsWith("figure") ? "figure" : kind);
    const button = element("button", title);
    button.type = "button";
    button.addEventListener("click", () => { up = key === name ? !up : true; key = name; apply(); });
    head.dataset.key = name;
    head.append(button);
    heads.append(head);
    find("sort").append(new Option(title, name));
  }
  find("clip-table").tHead.append(heads);
  fill("finding", count(clips.flatMap(clip => clip.findings)));
  for (const id of ["status", "part", "bucket"]) fill(id, count(clips.map(clip => clip[id])));
  for (const id of ["finding", "status", "part", "bucket"]) find(id).addEventListener("change", apply);
  find("search").addEventListener("input", apply);
  find("sort").addEventListener("change", () => { key = find("sort").value; apply(); });
  find("direction").addEventListener("click", () => { up = !up; apply(); });
  find("before").addEventListener("click", () => { page -= 1; draw(); });
  find("after").addEventListener("click", () => { page += 1; draw(); });
  for (const button of document.querySelectorAll("button[data-show]"))
    button.addEventListener("click", () => {
      find("finding").value = button.dataset.show;
      apply();
      find("all").scrollIntoView();
    });
  apply();
})();
