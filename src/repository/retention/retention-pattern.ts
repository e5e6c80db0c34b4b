/**
 * Patterns of VM names: `*` stands for any characters, `?` for one, everything else for itself. Matching takes time in
 * proportion to pattern × name at most, whatever they are: names come from the repository.
 */
export function matchesPattern(name: string, pattern: string): boolean {
  let inName = 0
  let inPattern = 0
  let star = -1 // the last star seen, and where in the name what follows it was last tried
  let tried = 0
  while (inName < name.length) {
    const wanted = pattern[inPattern]
    if (wanted === '*') {
      star = inPattern++
      tried = inName
    } else if (wanted !== undefined && (wanted === '?' || wanted === name[inName])) {
      inName++
      inPattern++
    } else if (star !== -1) {
      inPattern = star + 1
      inName = ++tried
    } else return false
  }
  while (pattern[inPattern] === '*') inPattern++
  return inPattern === pattern.length
}
