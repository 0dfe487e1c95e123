#include "elf_file.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PHDRS_MAX = 128, NOTES_MAX = 64 << 10 };

static bool
read_at(int fd, uint64_t at, void *data, size_t len)
{
	return at <= INT64_MAX && pread(fd, data, len, (off_t)at) == (ssize_t)len;
}

/* Returns the number of program headers, or 0 for what is no 64-bit ELF file. */
static size_t
read_headers(int fd, Elf64_Ehdr *eh, Elf64_Phdr ph[PHDRS_MAX])
{
	if (!read_at(fd, 0, eh, sizeof(*eh)) || memcmp(eh->e_ident, ELFMAG, SELFMAG) != 0 ||
	    eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_phentsize != sizeof(*ph) ||
	    eh->e_phnum > PHDRS_MAX || !read_at(fd, eh->e_phoff, ph, eh->e_phnum * sizeof(*ph)))
		return 0;
	return eh->e_phnum;
}

/* The build-id in a note segment. */
static int
find_build_id(const unsigned char *p, size_t len, char hex[BUILD_ID_HEX])
{
	while (len >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		size_t name, desc;

		memcpy(&n, p, sizeof(n));
		p += sizeof(n);
		len -= sizeof(n);
		name = ((size_t)n.n_namesz + 3) & ~(size_t)3;
		desc = ((size_t)n.n_descsz + 3) & ~(size_t)3;
		if (name > len || desc > len - name)
			return 0;
		if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 && memcmp(p, "GNU", 4) == 0 &&
		    n.n_descsz > 0 && n.n_descsz <= BUILD_ID_HEX / 2) {
			hex_encode(hex, p + name, n.n_descsz);
			return 1;
		}
		p += name + desc;
		len -= name + desc;
	}
	return 0;
}

int
elf_build_id(int fd, char hex[BUILD_ID_HEX])
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph[PHDRS_MAX];
	size_t n = read_headers(fd, &eh, ph);

	for (size_t i = 0; i < n; i++) {
		unsigned char *notes;
		int found = 0;

		if (ph[i].p_type != PT_NOTE || ph[i].p_filesz > NOTES_MAX)
			continue;
		notes = malloc(ph[i].p_filesz + 1);
		if (notes == NULL)
			return -ENOMEM;
		if (read_at(fd, ph[i].p_offset, notes, ph[i].p_filesz))
			found = find_build_id(notes, ph[i].p_filesz, hex);
		free(notes);
		if (found)
			return 1;
	}
	return 0;
}

uint64_t
elf_file_end(int fd)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph[PHDRS_MAX];
	size_t n = read_headers(fd, &eh, ph);
	uint64_t end;

	if (n == 0)
		return 0;
	/* Section headers stand at the very end, unless they were stripped. */
	end = eh.e_shoff + (uint64_t)eh.e_shnum * eh.e_shentsize;
	for (size_t i = 0; i < n; i++)
		end = max_u64(end, ph[i].p_offset + ph[i].p_filesz);
	return end;
}

int
elf_interpreter(int fd, uint64_t *at, uint64_t *room)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph[PHDRS_MAX];
	size_t n = read_headers(fd, &eh, ph);

	for (size_t i = 0; i < n; i++)
		if (ph[i].p_type == PT_INTERP) {
			*at = ph[i].p_offset;
			*room = ph[i].p_filesz;
			return 1;
		}
	return n > 0 ? 0 : -ENOEXEC;
}

static bool
inside(uint64_t at, uint64_t n, size_t len)
{
	return at <= len && n <= len - at;
}

/* A vDSO is loaded as it lies in the file: addresses are offsets plus one base. */
struct dynamic {
	uint64_t symtab, strtab, strsz, hash;
};

static bool
find_dynamic(const unsigned char *image, size_t len, struct dynamic *d)
{
	Elf64_Ehdr eh;
	uint64_t base = UINT64_MAX, at = 0, size = 0;

	memset(d, 0, sizeof(*d));
	if (len < sizeof(eh))
		return false;
	memcpy(&eh, image, sizeof(eh));
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 || eh.e_phentsize != sizeof(Elf64_Phdr) ||
	    !inside(eh.e_phoff, (uint64_t)eh.e_phnum * sizeof(Elf64_Phdr), len))
		return false;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		memcpy(&ph, image + eh.e_phoff + i * sizeof(ph), sizeof(ph));
		if (ph.p_type == PT_LOAD && base == UINT64_MAX)
			base = ph.p_vaddr - ph.p_offset;
		if (ph.p_type == PT_DYNAMIC) {
			at = ph.p_offset;
			size = ph.p_filesz;
		}
	}
	if (base == UINT64_MAX || !inside(at, size, len))
		return false;
	for (; size >= sizeof(Elf64_Dyn); at += sizeof(Elf64_Dyn), size -= sizeof(Elf64_Dyn)) {
		Elf64_Dyn dyn;

		memcpy(&dyn, image + at, sizeof(dyn));
		if (dyn.d_tag == DT_SYMTAB)
			d->symtab = dyn.d_un.d_ptr - base;
		else if (dyn.d_tag == DT_STRTAB)
			d->strtab = dyn.d_un.d_ptr - base;
		else if (dyn.d_tag == DT_STRSZ)
			d->strsz = dyn.d_un.d_val;
	}
	return d->symtab != 0 && inside(d->strtab, d->strsz, len) && d->strsz > 0 &&
	    image[d->strtab + d->strsz - 1] == '\0' && d->symtab < d->strtab;
}

int
elf_functions(const unsigned char *image, size_t len, elf_see *see, void *ctx)
{
	struct dynamic d;
	int n = 0;

	if (!find_dynamic(image, len, &d))
		return -EBADMSG;
	/* The string table follows the symbol table in every vDSO. */
	for (uint64_t at = d.symtab; at + sizeof(Elf64_Sym) <= d.strtab; at += sizeof(Elf64_Sym)) {
		Elf64_Sym sym;

		memcpy(&sym, image + at, sizeof(sym));
		if (ELF64_ST_TYPE(sym.st_info) != STT_FUNC || sym.st_shndx == SHN_UNDEF ||
		    sym.st_name >= d.strsz || !inside(sym.st_value, sym.st_size, len))
			continue;
		see(ctx, (const char *)image + d.strtab + sym.st_name, sym.st_value, sym.st_size);
		n++;
	}
	return n;
}
