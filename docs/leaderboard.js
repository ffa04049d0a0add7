// Sorts a table by the column whose heading is clicked: numbers from the highest, words from A; again, the other way.
document.querySelectorAll("table[data-sortable]").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  const content = (row, column) => row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const numeric = rows.some((row) => content(row, column) !== "" && !isNaN(content(row, column)));
      const first = numeric ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") !== first ? first : numeric ? "ascending" : "descending";
      const sign = order === "ascending" ? 1 : -1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      rows.sort((a, b) => {
        const [x, y] = [content(a, column), content(b, column)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last
        return sign * (numeric ? x - y : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
    });
  });
});
